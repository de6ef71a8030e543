import hashlib

import pytest
import torch
from torch import nn

from qdiff.errors import UserError
from qdiff.files.digest import file_digest, tensors_digest


def test_digest_of_a_file(tmp_path, monkeypatch):
    content = bytes(range(256)) * 10_000
    (tmp_path / "f").write_bytes(content)
    monkeypatch.delattr(hashlib, "file_digest", raising=False)  # Python 3.10 has none
    assert file_digest(tmp_path / "f") == hashlib.sha256(content).hexdigest()
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(UserError, match=f"cannot read {path} "):
            file_digest(path)


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
