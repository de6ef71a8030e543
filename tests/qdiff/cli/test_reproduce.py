"""`python -m qdiff reproduce`: a small table from end to end, interrupted, resumed, changed; and bad command lines."""

import csv
import json
import sys
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
from safetensors.torch import load_file, save_file

from qdiff.calibration import measure
from qdiff.cli.reproduce import ROOT
from qdiff.cli.table_commands import check, words
from qdiff.config.presets import load_table, table_names
from qdiff.evaluation import experiments
from qdiff.evaluation.choices import Choices
from qdiff.files.digest import file_digest
from tests.command_line import Ended, qdiff, refusal, script
from tests.qdiff.config.test_presets import PRESETS, write
from tests.tiny import write_tiny

FILES = {"results.json", "table.txt", "table.md", "table.csv", "report.html"}
IMAGES = 3
NONE = "This is no reproduction: "


def in_process(words: list[str], check: bool) -> SimpleNamespace:
    """Carry out a command here, which spares it its start, and without measuring the memory of learning."""
    assert words[0] == sys.executable
    with mock.patch.object(measure, "_iteration_bytes", return_value=0):
        ended = script(Path(words[1]).name, *words[2:])
    print(ended.out, ended.err)
    return SimpleNamespace(returncode=ended.status)


@pytest.fixture
def run_here(monkeypatch):
    monkeypatch.setattr(experiments, "subprocess", SimpleNamespace(run=in_process))


@pytest.fixture
def presets(tmp_path) -> Path:
    return table_of(tmp_path)


def table_of(parent: Path) -> Path:
    """Write presets of a table of two rows, on a tiny network whose weights have the stated digest."""
    config = write_tiny(parent)
    weights = parent / "tiny.safetensors"
    table = {
        "arguments": {"config": str(config), "ckpt": str(weights), "timesteps": 4, "batch_size": 2},
        "weights": {"argument": "ckpt", "file": str(weights), "sha256": file_digest(weights), "how": "made by hand"},
    }
    linear = {"ptq": True, "quant_mode": "linear", "weight_bit": 4}
    rows = {"01_linear": {"arguments": linear, "published": {"psnr": 20.0, "mae": 1.5}}}
    folder = write(parent / "presets", table, **rows)
    (folder / "mine" / "02_other.yaml").unlink()
    return folder


def reproduce(presets: Path, out: Path, *argv: object) -> Ended:
    """Run it on the table."""
    return qdiff("reproduce", "mine", "--presets", presets, "--out", out, "--device", "cpu", *argv)


def lines(out: Path) -> list[dict[str, str]]:
    with (out / "mine" / "table.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_table_in_every_format(presets, tmp_path, run_here):
    out = tmp_path / "out"
    ended = reproduce(presets, out)
    assert ended.status == 0, ended.err
    folder = out / "mine"
    assert {path.name for path in folder.iterdir() if path.is_file()} == FILES
    assert all(str(folder / name) in ended.out for name in FILES)
    assert (folder / "table.txt").read_text() in ended.out
    content = json.loads((folder / "results.json").read_text())
    assert (content["deviations"], [row["name"] for row in content["rows"]]) == ([], ["fp", "linear"])
    found = {row["metric"]: row["value"] for row in content["rows"][1]["evaluation"]["rows"]}
    table = {(line["row"], line["metric"]): line for line in lines(out)}
    line = table["linear", "PSNR to FP [dB]"]
    assert float(line["published"]) == 20 and float(line["obtained"]) == found["psnr"]
    assert float(line["difference"]) == found["psnr"] - 20
    assert table["full precision", "PSNR to FP [dB]"]["obtained"] == "inf", "of equal images"
    assert table["full precision", "distance to FP"]["difference"] == "0.0"
    shown = f"| linear | distance to FP | 1.500 | {found['mae']:#.4g} | {found['mae'] - 1.5:+.4g} |"
    assert shown in (folder / "table.md").read_text()
    page = unescape((folder / "report.html").read_text())
    assert page.count("data:image/png;base64,") == 2
    assert all(row["command"] in page and row["source"] in page for row in content["rows"])
    assert not any(NONE in (folder / name).read_text() for name in FILES), "nothing differs from the preset"
    assert "full precision meets its published value: distance to FP 0.00" in (folder / "table.txt").read_text()


def test_what_differs_is_said_in_every_format(presets, tmp_path, run_here):
    other = tmp_path / "other.safetensors"
    save_file({key: x * 0.99 for key, x in load_file(tmp_path / "tiny.safetensors").items()}, other)
    out = tmp_path / "out"
    ended = reproduce(presets, out, "--images", 2, "--weights", other, "timesteps=2", "--rows", "fp")
    assert ended.status == 0, ended.err
    reasons = [
        "timesteps is 2 instead of 4",
        "the values are of 2 images instead of 3",
        f"'{other}' does not hold the published weights (sha256 {file_digest(other)[:8]}",
    ]
    assert ended.out.partition("A table\n")[2].startswith(NONE), "before the values"
    for name in FILES - {"results.json"}:
        text = unescape((out / "mine" / name).read_text())
        assert NONE in text
        assert all(reason in text for reason in reasons)
    told = json.loads((out / "mine" / "results.json").read_text())["deviations"]
    assert len(told) == len(reasons)
    assert len(list((out / "mine" / "fp" / "img").iterdir())) == 2
    assert not (out / "mine" / "linear").exists()


def test_a_metric_without_a_value_is_said(presets, tmp_path, run_here):
    path = presets / "mine" / "00_fp.yaml"
    path.write_text(path.read_text().replace("mae: 0", "fid: 4.22"))
    ended = reproduce(presets, tmp_path / "out", "--rows", "fp")
    assert f"{NONE}fid has no value" in ended.out
    assert {(line["metric"], line["published"], line["obtained"]) for line in lines(tmp_path / "out")} >= {
        ("fid", "4.22", "")
    }


def test_the_same_command_goes_on_after_an_interruption(presets, tmp_path, monkeypatch):
    out, calls = tmp_path / "out", []

    def second_is_interrupted(words, check):
        calls.append(words)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return in_process(words, check)

    monkeypatch.setattr(experiments, "subprocess", SimpleNamespace(run=second_is_interrupted))
    ended = reproduce(presets, out)
    assert (ended.status, ended.err) == (130, "interrupted: run the same command again to resume\n")
    assert not any((out / "mine" / name).exists() for name in FILES)
    lost = out / "mine" / "fp" / "img" / "000001.png"
    made = {path: path.stat().st_mtime_ns for path in lost.parent.iterdir()}
    before = lost.read_bytes()
    lost.unlink()
    assert reproduce(presets, out).status == 0
    assert {path: path.stat().st_mtime_ns for path in made if path != lost} == {
        path: time for path, time in made.items() if path != lost
    }
    assert lost.read_bytes() == before
    uninterrupted = tmp_path / "whole"
    monkeypatch.setattr(experiments, "subprocess", SimpleNamespace(run=in_process))
    assert reproduce(presets, uninterrupted).status == 0
    assert lines(out) == lines(uninterrupted)


def test_a_calibrated_file_is_used_as_it_is(presets, tmp_path, run_here):
    reproduce(presets, tmp_path / "out")
    file = tmp_path / "out" / "mine" / "linear" / "quantized.safetensors"
    ended = reproduce(presets, tmp_path / "again", "--calibrated", f"linear={file}")
    assert ended.status == 0, ended.err
    assert f"{NONE}linear is calibrated elsewhere, '{file}'." in ended.out
    strip = [{**line, "statement": ""} for line in lines(tmp_path / "again")]
    assert strip == lines(tmp_path / "out"), "the same network"


def test_a_dry_run_says_what_is_missing_and_writes_nothing(presets, tmp_path, run_here):
    (tmp_path / "tiny.safetensors").unlink()
    path = presets / "mine" / "table.yaml"
    path.write_text(path.read_text() + "reference:\n  how: ask its authors\n")
    ended = reproduce(presets, tmp_path / "out", "--dry-run")
    assert ended.status == 0, ended.err
    assert f"weights: missing, not at {tmp_path / 'tiny.safetensors'}: made by hand" in ended.out
    assert "reference: missing: give --reference: ask its authors" in ended.out
    assert f"sampling: {IMAGES} images, 4 steps, about " in ended.out
    assert "linear: to be calibrated" in ended.out
    assert not (tmp_path / "out").exists()


def test_a_run_that_fails_ends_the_table(presets, tmp_path, monkeypatch):
    fails = SimpleNamespace(run=lambda words, check: SimpleNamespace(returncode=2))
    monkeypatch.setattr(experiments, "subprocess", fails)
    ended = reproduce(presets, tmp_path / "out")
    assert ended.status == 2
    assert "'mine: full precision' ended with status 2" in ended.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--rows", "linaer"], "--rows: table 'mine' has no row 'linaer': did you mean linear?"),
        (["timestep=2"], "'timestep' is no argument of table 'mine': did you mean timesteps?"),
        (["timesteps=0"], "table 'mine', row 'fp': --timesteps: '0' is not a whole number in 1.."),
        (["timesteps="], "'timesteps=' has no valid value: correct it"),
        (["--images", "0"], "--images: '0' is not a whole number in 1.."),
        (["--weights", "nothing"], "--weights: no 'nothing': give a path that exists"),
        (["--reference", "nothing"], "--reference: no 'nothing': give a path that exists"),
        (["--calibrated", "fp=x"], "--calibrated: 'fp' is no quantized row of table 'mine': use linear"),
        (["--calibrated", "linear=x"], "--calibrated: no 'x': give a calibrated checkpoint"),
        (["--calibrated", "linear"], "--calibrated: 'linear' is not ROW=FILE"),
        (
            ["--features", "x", "--inception", "y"],
            "--features and --inception exclude each other: leave one of them out",
        ),
    ],
)
def test_a_bad_command_line_is_one_line(presets, tmp_path, argv, message):
    assert refusal("reproduce", "mine", "--presets", presets, "--out", tmp_path / "out", *argv) == message
    assert not (tmp_path / "out").exists()


def test_images_of_prompts_are_not_counted():
    assert "come from prompts" in refusal("reproduce", "emoji64-txt2img", "--images", 2)


@pytest.mark.parametrize("name", table_names(PRESETS))
def test_the_scripts_accept_every_preset(name):
    table = check(load_table(PRESETS, name, ROOT, Path("out")), Choices())
    assert len(table.rows) >= 2
    for row in table.rows:
        assert row.arguments[table.weights.argument] if not table.weights.published else row.arguments["use_pretrained"]


def test_words_of_arguments():
    assert words({"ptq": True, "split": False, "classes": [0, 2], "eta": 0.0, "keep8": None}) == [
        *("--ptq", "--classes", "0,2", "--eta", "0.0")
    ]
