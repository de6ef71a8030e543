import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qdiff.correction.file import FORMAT, read_correction, write_correction
from qdiff.correction.parts import PARTS
from qdiff.correction.table import TENSORS, CorrectionTable
from qdiff.errors import UserError
from qdiff.files.digest import canonical_json, content_digest
from tests.qdiff.correction.tables import make_table


@pytest.fixture
def file(tmp_path) -> Path:
    write_correction(tmp_path / "c.safetensors", make_table("bias", "variance"))
    return tmp_path / "c.safetensors"


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_correction(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def rewrite(path: Path, tensors=None, **changes) -> None:
    """Change a file and seal it again, as a program with a mistake would."""
    header = header_of(path) | changes
    tensors = load_file(path) | (tensors or {})
    header.pop("sha256")
    header["sha256"] = content_digest(header, tensors)
    save_file(tensors, path, {FORMAT: canonical_json(header)})


def header_of(path: Path) -> dict:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(json.loads(content[8 : 8 + length])["__metadata__"][FORMAT])


def test_what_is_written_is_read(file, tmp_path):
    table, read = make_table("bias", "variance"), read_correction(file)
    for name in CorrectionTable.__dataclass_fields__:
        before, now = getattr(table, name), getattr(read, name)
        assert torch.equal(before, now) if name in TENSORS else before == now, name
    write_correction(tmp_path / "again.safetensors", read)
    assert (tmp_path / "again.safetensors").read_bytes() == file.read_bytes()
    assert file.stat().st_size < 3000


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_a_truncated_file(file, keep):
    file.write_bytes(file.read_bytes()[:keep])
    assert "not a whole safetensors file" in refusal(file)


def test_a_missing_file(tmp_path):
    assert "cannot read" in refusal(tmp_path / "none.safetensors")
    assert "cannot read" in refusal(tmp_path)


def test_a_foreign_file(file):
    save_file({"weight": torch.zeros(3)}, file)
    assert "is not the file of a correction" in refusal(file)


def test_a_flipped_bit(file):
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    assert "sha256 does not agree" in refusal(file)


def test_a_later_version(file):
    rewrite(file, version=2)
    assert "update qdiff" in refusal(file)


@pytest.mark.parametrize(
    ("changes", "tensors"),
    [
        ({"format": "x"}, {}),
        ({"version": "1"}, {}),
        ({"fit": "x"}, {}),
        ({"timesteps": [1, 2]}, {}),
        ({"timesteps": 7}, {}),
        ({"log_snr": ["a", 1, 2]}, {}),
        ({"parts": {"slope": {"on": True}}}, {}),
        ({"parts": {name: {"x": 1} for name in PARTS}}, {}),
        ({"parts": {name: {"on": "yes"} for name in PARTS}}, {}),
        ({"made_for": 3}, {}),
        ({}, {"bias": torch.zeros(3, 2)}),
        ({}, {"bias": torch.full((3, 2), torch.nan).double()}),
        ({}, {"std": torch.zeros(4).double()}),
        ({}, {"more": torch.zeros(4).double()}),
    ],
)
def test_sealed_nonsense(file, changes, tensors):
    rewrite(file, tensors, **changes)
    assert "is damaged" in refusal(file)


def test_a_refused_write_is_one_line_and_loses_nothing(file):
    before = file.read_bytes()
    with pytest.raises(UserError, match="cannot use"):
        write_correction(file / "below", make_table())
    assert file.read_bytes() == before
