"""What a file or folder is, told by its content: checkpoints by format, everything else by its name."""

import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from qdiff.errors import UserError
from qdiff.files.formats import format_of, zip_kind


def refusal(path) -> str:
    with pytest.raises(UserError) as error:
        format_of(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"", "empty"),
        (b"\n<!DOCTYPE html><html>Virus scan warning</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"GGUF\x03\0\0\0" + bytes(200), "GGUF"),
        (b"\x89HDF\r\n\x1a\n" + bytes(200), "HDF5"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"\x1f\x8b\x08" + bytes(20), "gzip"),
        (b'{"weight_map": {"a": "model-00001-of-00002.safetensors"}}', "several files"),
        (b'{"metadata": {"total_size": 1}, ' + b" " * 2000 + b'"weight_map": {}}', "several files"),
        (b'{"_class_name": "UNet2DConditionModel"}', "JSON"),
        (b"model.ckpt" + bytes(247) + b"ustar\x0000" + bytes(300), "tar"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path, content, name):
    (tmp_path / "model.ckpt").write_bytes(content)
    assert name in refusal(tmp_path / "model.ckpt")


def test_a_missing_file(tmp_path):
    assert "No such file" in refusal(tmp_path / "absent")


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        ("model_index.json", "diffusers"),
        ("unet/config.json", "diffusers"),
        ("diffusion_pytorch_model.safetensors", "diffusers"),
        ("model.safetensors.index.json", "several files"),
        ("pytorch_model.bin.index.json", "several files"),
        ("adapter_config.json", "LoRA"),
        (".metadata", "distributed"),
        ("notes.txt", "a folder"),
    ],
)
def test_a_folder_is_named(tmp_path, entry, name):
    (tmp_path / entry).parent.mkdir(exist_ok=True)
    (tmp_path / entry).touch()
    assert name in refusal(tmp_path)


def test_a_header_of_any_length_is_that_of_safetensors(tmp_path):
    """The first byte, which belongs to the length, may be any character, one that other formats begin with too."""
    for size in range(1, 200):
        save_file({"x" * size: torch.ones(1)}, tmp_path / "x")
        assert format_of(tmp_path / "x") == "safetensors"


def test_zip_archives_that_torch_did_not_write(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "torch")
    np.savez(tmp_path / "x.npz", a=np.ones(1))
    for name, members in {
        "script": ("m/data.pkl", "m/code/x.py", "m/constants.pkl"),
        "folder": ("model.ckpt",),
    }.items():
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for member in members:
                archive.writestr(member, b"x")
    found = {}
    for path in tmp_path.iterdir():
        assert format_of(path) == "zip"
        with zipfile.ZipFile(path) as archive:
            found[path.name] = zip_kind(archive)
    assert found["torch"] is None
    assert "NumPy" in found["x.npz"] and "TorchScript" in found["script"] and "'model.ckpt'" in found["folder"]
