"""Digests against hashlib, and golden ones: files that record digests must stay readable."""

import hashlib

import numpy as np
import pytest
import torch
from torch import nn

from qdiff.errors import UserError
from qdiff.files.digest import digest, file_digest, tensor_bytes, tensors_digest


def test_parts_are_concatenated():
    assert digest([]) == hashlib.sha256().hexdigest()
    assert digest([b"ab", memoryview(b"c")]) == hashlib.sha256(b"abc").hexdigest()


@pytest.mark.parametrize("size", [0, 1, 2**20, 2**20 + 1, 2_560_000])
def test_file(size, tmp_path):
    content = np.random.default_rng(size).bytes(size)
    (tmp_path / "f").write_bytes(content)
    assert file_digest(tmp_path / "f") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("name", ["missing", "."])
def test_a_file_that_cannot_be_read(name, tmp_path):
    with pytest.raises(UserError, match=rf"^cannot read '{tmp_path / name}' \(.*\): check the path"):
        file_digest(tmp_path / name)


def test_golden_digests():
    """Recorded in run folders, journals and quantized files of earlier versions."""
    tensors = {
        "a": torch.arange(6.0).reshape(2, 3),
        "é": torch.tensor(7),
        "t": torch.arange(6).reshape(2, 3).T,
        "none": torch.zeros(0, 4),
        "h": torch.ones(3, dtype=torch.float16),
        "b": torch.tensor([True, False]),
    }
    assert tensors_digest(tensors) == "1557f78c09e56d13ef5dd83e3120e0da5f123f46c6a40ccbb79872e1b7286ac0"


def test_bytes_of_a_type_that_numpy_lacks():
    x = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.bfloat16)
    assert bytes(tensor_bytes(x.T)) == np.array([0x3F80, 0x3F00, 0xC000, 0x4040], "<u2").tobytes()


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.zeros(2, 3))
        self.register_buffer("b", torch.zeros(6))


def changed(change) -> str:
    module = Two()
    change(module)
    return tensors_digest(module.state_dict())


def test_digest_of_weights():
    digests = {
        tensors_digest(Two().state_dict()),
        changed(lambda m: m.a.data[1, 2].fill_(1e-30)),
        changed(lambda m: m.b[5].fill_(1)),
        changed(lambda m: setattr(m.a, "data", torch.zeros(3, 2))),
        changed(lambda m: setattr(m, "b", torch.zeros(6, dtype=torch.float64))),
        changed(lambda m: m.register_buffer("c", torch.zeros(0))),
    }
    assert len(digests) == 6
    assert changed(lambda m: m.a.data.zero_()) in digests
    assert changed(lambda m: m.train(False)) in digests
    assert changed(lambda m: setattr(m.a, "data", torch.zeros(3, 2).T)) == tensors_digest(Two().state_dict())
