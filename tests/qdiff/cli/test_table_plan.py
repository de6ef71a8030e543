"""What is left to do for a table, added up; the costs of rows are given."""

from dataclasses import replace
from pathlib import Path

import pytest

from qdiff.cli.table_commands import check
from qdiff.cli.table_plan import show_plan
from qdiff.config.presets import load_table
from qdiff.config.tables import Table
from qdiff.errors import UserError
from qdiff.evaluation.choices import Choices
from qdiff.files.images import image_path
from qdiff.pipelines import cost
from qdiff.pipelines.cost import Cost
from tests.qdiff.config.test_presets import write
from tests.tiny import write_tiny

IMAGE = 60.0  # seconds
FULL = Cost(IMAGE, 0.0, 5 * 10**6, 0, 100, 0)
QUANTIZED = Cost(2 * IMAGE, 7200.0, 3 * 10**9, 2 * 10**9, 10**6, 500 * 10**6)


@pytest.fixture
def table(tmp_path) -> Table:
    """Full precision, a row that collects data, and one that learns from them; three images each."""
    config = write_tiny(tmp_path)
    arguments = {"config": str(config), "ckpt": str(tmp_path / "tiny.safetensors"), "timesteps": 4}
    data = {"cali_st": 2, "cali_n": 10, "quant_act": True}
    rows = {
        "01_linear": {"arguments": {"ptq": True, "quant_mode": "linear", **data}},
        "02_other": {"arguments": {"ptq": True, "cali_data_path": "${rows.linear}/data.safetensors", **data}},
    }
    presets = write(tmp_path / "presets", {"arguments": arguments}, **rows)
    return check(load_table(presets, "mine", Path("clone"), tmp_path / "out"), Choices())


@pytest.fixture
def plan(table, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cost, "measured_cost", lambda pipeline, quantization: QUANTIZED if quantization else FULL)

    def plan() -> dict[str, list[str]]:
        show_plan(table, tmp_path / "out", Choices(), Path("clone"), "cpu")
        lines = capsys.readouterr().out.splitlines()
        start = next(i for i, line in enumerate(lines) if line.startswith("row "))
        cells = [[cell.strip() for cell in line.split("  ") if cell] for line in lines[start : start + 5]]
        return {row[0]: row[1:] for row in cells}

    return plan


def test_rows_are_added_up(plan):
    rows = plan()
    assert rows["row"] == ["state", "calibration", "sampling", "memory", "disk"]
    assert rows["full precision"] == ["full precision, 0 of 3 images", "0:00:00", "0:03:00", "5 MB", "0 MB"]
    # ten images are sampled for data, of two steps of 1 MB each
    collecting = ["to be calibrated, 0 of 3 images", "2:20:00", "0:06:00", "3.0 GB", "2.5 GB"]
    assert rows["linear"] == collecting
    assert rows["other"] == ["to be calibrated, 0 of 3 images", "2:00:00", "0:06:00", "3.0 GB", "2.5 GB"]
    # one after another: times and files add up, memory and passing files do not
    assert rows["all"] == ["4.6 hours", "4:20:00", "0:15:00", "3.0 GB", "4.5 GB"]


def test_what_is_done_is_not_counted(plan, tmp_path):
    linear = tmp_path / "out" / "linear"
    (linear / "img").mkdir(parents=True)
    for path in (linear / "quantized.safetensors", image_path(linear / "img", 0), image_path(linear / "img", 7)):
        path.touch()
    rows = plan()
    assert rows["linear"] == ["calibrated, 1 of 3 images", "0:00:00", "0:04:00", "3.0 GB", "0 MB"]
    assert rows["all"] == ["2.2 hours", "2:00:00", "0:13:00", "3.0 GB", "2.5 GB"]


def test_a_calibrated_checkpoint_takes_no_calibration(table, plan, tmp_path):
    file = tmp_path / "w4.pth"
    file.touch()
    resumed = replace(table.rows[1], arguments={**table.rows[1].arguments, "resume": True, "cali_ckpt": file})
    object.__setattr__(table, "rows", (table.rows[0], resumed))
    assert plan()["linear"] == ["calibrated before, 0 of 3 images", "0:00:00", "0:06:00", "3.0 GB", "0 MB"]


def test_a_row_without_a_plan_does_not_end_the_others(table, tmp_path, monkeypatch, capsys):
    def refuses(pipeline, quantization):
        if quantization:
            raise UserError("too many")
        return FULL

    monkeypatch.setattr(cost, "measured_cost", refuses)
    show_plan(table, tmp_path / "out", Choices(), Path("clone"), "cpu")
    out = capsys.readouterr().out
    assert "linear: no plan: too many" in out and "other: no plan: too many" in out
    assert "full precision, 0 of 3 images" in out


def test_a_row_that_takes_the_network_of_another_waits_for_it(table, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cost, "measured_cost", lambda pipeline, quantization: QUANTIZED if quantization else FULL)
    file = tmp_path / "out" / "linear" / "quantized.safetensors"
    linear, other = table.rows[1:]
    corrected = replace(
        other, title="corrected", arguments={**linear.arguments, "resume": True, "cali_ckpt": str(file)}
    )
    show_plan(replace(table, rows=(*table.rows[:2], corrected)), tmp_path / "out", Choices(), Path("clone"), "cpu")
    assert "corrected: no plan before linear is calibrated, whose network it takes\n" in capsys.readouterr().out
