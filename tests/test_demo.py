"""`scripts/demo.py` on a tiny model: methods compared from the same seeds, in one report."""

import json
import sys
from pathlib import Path
from unittest import mock

import pytest

from qdiff.analysis.tradeoff import read_results
from qdiff.calibration import measure
from qdiff.execution import has_vnni
from qdiff.pipelines.device import find_device
from scripts import demo
from tests.tiny import write_tiny

METHODS = {
    "linear W4A8": {"method": "linear"},
    "Q-Diffusion W4A8": {"iterations": 2, "act_iterations": 2, "batch_size": 4},
}
IMAGES = 3


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    flags = {"config": write_tiny(folder), "out": folder / "out", "images": IMAGES, "steps": 4, "timesteps": 2}
    argv = ["demo.py", *(f"--{name}={value}" for name, value in (flags | {"samples": 2}).items())]
    with (
        mock.patch.object(measure, "_iteration_bytes", return_value=0),
        mock.patch.object(demo, "METHODS", METHODS),
        mock.patch.object(demo, "EXECUTED", "linear W4A8"),
        mock.patch.object(sys, "argv", argv),
    ):
        demo.main()
    return folder / "out"


def test_the_report(out):
    files = {path.name for path in out.iterdir() if path.is_file()}
    assert files == {
        *("comparison_pixel.png", "results.json", "table.txt", "table.md", "table.csv", "report.html"),
        *("tradeoff_pixel.svg", "differences_pixel.png", "trajectory_pixel.svg"),
    }
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 4 + 1 and page.count("data:image/svg+xml;base64,") == 2


def test_rows(out):
    rows = json.loads((out / "results.json").read_text(encoding="utf-8"))["results"]["pixel"]
    fp, linear, corrected, learned = rows
    assert [row["method"] for row in rows] == [
        "full precision",
        "linear W4A8",
        "linear W4A8, corrected",
        "Q-Diffusion W4A8",
    ]
    assert linear["size"] < corrected["size"] < linear["size"] + 10_000 and "correct(quantize(" in corrected["command"]
    assert (fp["psnr"], fp["mae"], fp["size"]) == (None, 0, fp["fp32_size"])
    for row, name in zip((linear, learned), ("linear_w4a8", "q-diffusion_w4a8")):
        assert row["size"] == (out / name / "quantized.safetensors").stat().st_size < 0.5 * row["fp32_size"]
        assert 0 < row["mae"] < 255 and row["evaluation"]["images"]["number"] == IMAGES
        assert row["evaluation"]["notes"] == [], "how the images were sampled is known"
        assert row["evaluation"]["sampling"]["bits"] == "W4A8"
    assert set(fp["seconds"]) == {"float32"} and set(learned["seconds"]) == {"simulated"}
    assert set(linear["seconds"]) - {"openvino", "torch", "onnxruntime"} == {"simulated"}
    assert len(linear["seconds"]) == 2 or not has_vnni() or find_device("auto").type != "cpu"
    assert "linear_w4a8/calibration_data.safetensors" in learned["command"], "data are collected once"


def test_its_results_can_be_plotted(out):
    assert ["psnr" in result.numbers for result in read_results([out / "results.json"])] == [False, True, True, True]
