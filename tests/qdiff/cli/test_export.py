"""`python -m qdiff export`: a file for engines, from one of ours alone."""

import pytest
import torch

from qdiff.calibration.data import CalibrationSet
from qdiff.checkpoints.load import save_quantized
from qdiff.config.networks import plain
from qdiff.execution import has_vnni
from tests.command_line import qdiff, refusal
from tests.qdiff.export.networks import pixel_space, quantized
from tests.tiny import tiny_config

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "w4a8.safetensors"
    network, call = pixel_space()
    save_quantized(path, quantized(network, call), config=plain(tiny_config()))
    return path


@pytest.mark.skipif(not has_vnni(), reason="the engine's sums of products overflow without VNNI")
def test_a_file_is_exported_and_compared(file, tmp_path):
    out = tmp_path / "w4a8.onnx"
    ended = qdiff("export", file, "-o", out, "--packed", "--check", "--engine", "onnxruntime", "--batch_size", 2)
    assert ended.status == 0, ended.err
    first, inputs, executed, error, time = ended.out.splitlines()
    assert first.startswith(f"{out}: ") and "weights in 4 bits" in first
    assert executed.split(maxsplit=1)[1].startswith("0 of 45 convolutions, 10 of 10 linear layers, 8 of 8 attention")
    assert inputs.split(maxsplit=1)[1].startswith("noise")
    assert 0 <= float(error.split()[1]) < 0.1
    assert "ms per call of 2 images" in time
    assert "exists: choose another --out" in refusal("export", file, "-o", out)


@pytest.mark.skipif(not has_vnni(), reason="the engine's sums of products overflow without VNNI")
def test_it_is_compared_on_calibration_data(file, tmp_path):
    _, call = pixel_space()
    inputs = call.map(lambda x: torch.cat([x, x + 1]))
    data = tmp_path / "data.safetensors"
    x, t = inputs.args
    CalibrationSet((x, t.float() + 0.5)).save(data)  # as DPM-Solver has them
    flags = ("--check", "--engine", "onnxruntime", "--batch_size", 3)
    ended = qdiff("export", file, "-o", tmp_path / "a.onnx", *flags, "--data", data)
    assert ended.status == 0, ended.err
    assert f"3 samples of {data}" in ended.out

    moved = tmp_path / "w4a8.safetensors"
    moved.write_bytes(file.read_bytes())
    CalibrationSet((torch.zeros(2, 3, 4, 4), torch.zeros(2))).save(tmp_path / "calibration_data.safetensors")
    assert qdiff("export", moved, "-o", tmp_path / "unchecked.onnx").status == 0, "it reads no data"
    message = refusal("export", moved, "-o", tmp_path / "b.onnx", *flags)
    assert "calibration_data.safetensors' is not of the network of" in message
    assert "holds no calibration data" in refusal("export", moved, "-o", tmp_path / "c.onnx", *flags, "--data", moved)


def test_activations_that_tensorrt_would_refuse(file, tmp_path):
    message = refusal("export", file, "-o", tmp_path / "a.onnx", "--rules", "tensorrt")
    assert "zero points must be 0" in message and "--preset tensorrt" in message
    assert not (tmp_path / "a.onnx").exists()


def test_a_file_without_configuration(tmp_path):
    network, call = pixel_space()
    save_quantized(tmp_path / "a.safetensors", quantized(network, call))
    message = refusal("export", tmp_path / "a.safetensors", "-o", tmp_path / "a.onnx")
    assert "give it with --config" in message


def test_a_foreign_file(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"x" * 64)
    assert "a.safetensors" in refusal("export", tmp_path / "a.safetensors", "-o", tmp_path / "a.onnx")
