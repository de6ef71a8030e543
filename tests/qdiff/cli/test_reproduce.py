"""`python -m qdiff reproduce`: a small table from end to end, interrupted, resumed, changed; and bad command lines."""

import csv
import json
import re
import shutil
import sys
from html import unescape
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from qdiff.calibration import measure
from qdiff.cli import table_commands
from qdiff.cli.reproduce_flags import ROOT
from qdiff.cli.sample import perform
from qdiff.cli.table_commands import check, words
from qdiff.config.presets import load_table, table_names
from qdiff.evaluation.choices import Choices
from qdiff.evaluation.features import CATEGORIES, load_feature_net
from qdiff.files.digest import file_digest
from qdiff.files.images import read_images
from tests.command_line import Ended, qdiff, refusal
from tests.ldm.tiny import CLASSES, write_latent
from tests.qdiff.config.test_presets import PRESETS, write
from tests.tiny import write_tiny

TEXTS = {"table.txt", "table.md", "table.csv", "report.html"}
FILES = {"results.json", *TEXTS}
PICTURES = {"comparison_mine.png", "differences_mine.png", "tradeoff_mine.svg"}
CLASSIFIER = ROOT / "models/features/emoji32/classifier.safetensors"
IMAGES = 3
NONE = "This is no reproduction: "


@pytest.fixture(autouse=True)
def unmeasured(monkeypatch):
    """Plan without measuring the memory of learning, which takes long."""
    monkeypatch.setattr(measure, "_iteration_bytes", lambda *args: 0)


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


def lines(folder: Path) -> list[dict[str, str]]:
    with (folder / "table.csv").open() as file:
        return list(csv.DictReader(file))


def results(folder: Path) -> dict[str, list[dict]]:
    return json.loads((folder / "results.json").read_text())["results"]


def wide(folder: Path) -> list[list[str]]:
    """The first table of `table.md`, without its second line."""
    rows = [
        line.strip("| ").split(" | ") for line in (folder / "table.md").read_text().partition("\n| ")[2].split("\n")
    ]
    return [rows[0], *rows[2 : rows.index([""])]]


def test_a_table_in_every_format(presets, tmp_path):
    out = tmp_path / "out"
    ended = reproduce(presets, out)
    assert ended.status == 0, ended.err
    folder = out / "mine"
    assert {path.name for path in folder.iterdir() if path.is_file()} == FILES | PICTURES
    assert {path.name for path in out.iterdir()} == {"mine"}, "the pages of one table stand beside its runs"
    assert all(str(folder / name) in ended.out for name in FILES)
    assert (folder / "table.txt").read_text() in ended.out
    content = json.loads((folder / "results.json").read_text())
    rows = content["results"]["mine"]
    assert content["tables"]["mine"]["deviations"] == [] and [row["name"] for row in rows] == ["fp", "linear"]
    found, table = rows[1], {(line["method"], line["metric"]): line for line in lines(folder)}
    line = table["linear", "PSNR to FP [dB]"]
    assert float(line["published"]) == 20 and float(line["obtained"]) == found["psnr"]
    assert float(line["difference"]) == found["psnr"] - 20
    assert table["full precision", "PSNR to FP [dB]"]["obtained"] == "inf", "of equal images"
    assert table["full precision", "distance to FP"]["difference"] == "0.0"
    shown = f"| linear | distance to FP | 1.500 | {found['mae']:#.4g} | {found['mae'] - 1.5:+.4g} |"
    assert shown in (folder / "table.md").read_text()
    page = unescape((folder / "report.html").read_text())
    assert page.count("data:image/png;base64,") == 2 + 1 and page.count("data:image/svg+xml;base64,") == 1
    assert all(row["command"] in page and row["source"] in page for row in rows)
    assert not any(NONE in (folder / name).read_text() for name in FILES), "nothing differs from the preset"
    assert "full precision meets its published value: distance to FP 0.00" in (folder / "table.txt").read_text()


def test_a_row_for_each_method_with_the_size_of_its_file(presets, tmp_path):
    out = tmp_path / "out"
    assert reproduce(presets, out).status == 0
    fp, linear = results(out / "mine")["mine"]
    weights = load_file(tmp_path / "tiny.safetensors").values()
    assert fp["size"] == fp["fp32_size"] == linear["fp32_size"] == 4 * sum(x.numel() for x in weights)
    assert linear["size"] == (out / "mine" / "linear" / "quantized.safetensors").stat().st_size
    titles, *rows = wide(out / "mine")
    assert titles == ["method", "PSNR to FP [dB]", "distance to FP", "file"]
    mb, ratio = linear["size"] / 1e6, linear["size"] / linear["fp32_size"]
    assert rows[0][1:3] == ["∞", "0.00"] and rows[0][3].endswith(" MB (1.000 x)")
    assert rows[1] == ["linear", f"{linear['psnr']:.2f}", f"{linear['mae']:.2f}", f"{mb:.2f} MB ({ratio:.3f} x)"]


def test_several_tables_have_a_common_report_too(presets, tmp_path):
    shutil.copytree(presets / "mine", presets / "other")
    out = tmp_path / "out"
    ended = qdiff("reproduce", "mine", "other", "--presets", presets, "--out", out, "--device", "cpu")
    assert ended.status == 0, ended.err
    assert {path.name for path in out.iterdir()} == FILES | {"mine", "other"}
    for name in ("mine", "other"):
        assert results(out)[name] == results(out / name)[name]
        assert (out / name / "table.md").read_text() in (out / "table.md").read_text()
    assert {line["table"] for line in lines(out)} == {"mine", "other"}
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2 * 3
    assert ended.out.count(f"written: {out / 'results.json'}") == 1


@pytest.fixture
def classes(tmp_path) -> Path:
    """A table of a model with classes, three of which alternate; images of 32 x 32."""
    folder = tmp_path / "latent"
    write_latent(CLASSES, folder)
    config = OmegaConf.load(folder / "config.yaml")
    config.classes = [*CATEGORIES]
    OmegaConf.save(config, folder / "config.yaml")
    weights = str(folder / "model.safetensors")
    table = {
        "script": "ldm",
        "images": 6,
        "features": str(CLASSIFIER),
        "metrics": ["recognised", "psnr"],
        "arguments": {"resume_base": weights, "custom_steps": 4, "eta": 0.0, "classes": [2, 0, 5], "seed": 5},
        "weights": {"argument": "resume_base", "file": weights, "how": "made by hand"},
    }
    presets = write(tmp_path / "presets", table)
    for name in ("01_linear", "02_other"):
        (presets / "mine" / f"{name}.yaml").unlink()
    return presets


def test_what_classes_and_columns_of_images_show(classes, tmp_path):
    ended = reproduce(classes, tmp_path / "out")
    assert ended.status == 0, ended.err
    folder = tmp_path / "out" / "mine"
    (fp,) = results(folder)["mine"]
    images = read_images(sorted((folder / "fp" / "img").iterdir()))
    named = load_feature_net(CLASSIFIER).extract(images).logits.argmax(1).tolist()
    assert fp["recognised"] == sum(a == b for a, b in zip(named, [2, 0, 5, 2, 0, 5])) / 6
    assert wide(folder)[0] == ["method", "category recognised", "PSNR to FP [dB]", "file"], "in the order of the preset"
    assert "Columns of images, from the left: Flags, Activities, People & Body." in (folder / "table.md").read_text()


def test_columns_that_show_several_classes_have_no_caption(classes, tmp_path):
    path = classes / "mine" / "table.yaml"
    content = yaml.safe_load(path.read_text())
    del content["arguments"]["classes"]
    path.write_text(yaml.safe_dump(content))
    assert reproduce(classes, tmp_path / "out").status == 0
    assert "Columns of images" not in (tmp_path / "out" / "mine" / "table.md").read_text()


def test_an_unknown_metric_of_a_preset_is_refused_before_sampling(classes, tmp_path):
    path = classes / "mine" / "table.yaml"
    path.write_text(path.read_text().replace("recognised", "recognized"))
    said = refusal("reproduce", "mine", "--presets", classes, "--out", tmp_path / "out")
    assert said == "table 'mine', metrics: 'recognized' is unknown: did you mean recognised?"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("package", ["torch_fidelity", "matplotlib"])
def test_a_missing_package_is_told_before_sampling(package, presets, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    said = refusal("reproduce", "mine", "--presets", presets, "--out", tmp_path / "out")
    assert package in said and "pip install" in said
    assert not (tmp_path / "out").exists()


def test_what_differs_is_said_in_every_format(presets, tmp_path):
    other = tmp_path / "other.safetensors"
    save_file({key: x * 0.99 for key, x in load_file(tmp_path / "tiny.safetensors").items()}, other)
    out = tmp_path / "out"
    ended = reproduce(presets, out, "--images", 2, "--weights", other, "--rows", "fp", "timesteps=2")
    assert ended.status == 0, ended.err
    reasons = [
        "timesteps is 2 instead of 4",
        "the values are of 2 images instead of 3",
        f"'{other}' does not hold the published weights (sha256 {file_digest(other)[:8]}",
    ]
    assert re.search(rf"A table: 2 images per method, same seeds\n{NONE}", ended.out), "before the values"
    for name in TEXTS:
        text = unescape((out / "mine" / name).read_text())
        assert NONE in text
        assert all(reason in text for reason in reasons)
    told = json.loads((out / "mine" / "results.json").read_text())["tables"]["mine"]["deviations"]
    assert len(told) == len(reasons)
    assert len(list((out / "mine" / "fp" / "img").iterdir())) == 2
    assert not (out / "mine" / "linear").exists()


def test_a_metric_without_a_value_is_said(presets, tmp_path):
    path = presets / "mine" / "00_fp.yaml"
    path.write_text(path.read_text().replace("mae: 0", "fid: 4.22"))
    ended = reproduce(presets, tmp_path / "out", "--rows", "fp")
    assert f"{NONE}fid has no value" in ended.out
    assert {(line["metric"], line["published"], line["obtained"]) for line in lines(tmp_path / "out" / "mine")} >= {
        ("fid", "4.22", "")
    }


def test_the_same_command_goes_on_after_an_interruption(presets, tmp_path, monkeypatch):
    out, calls = tmp_path / "out", []

    def second_is_interrupted(run, args):
        calls.append(run)
        if len(calls) == 2:
            raise KeyboardInterrupt
        perform(run, args)

    monkeypatch.setattr(table_commands, "perform", second_is_interrupted)
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
    assert reproduce(presets, uninterrupted).status == 0
    assert lines(out / "mine") == lines(uninterrupted / "mine")


def test_a_calibrated_file_is_used_as_it_is(presets, tmp_path):
    reproduce(presets, tmp_path / "out")
    file = tmp_path / "out" / "mine" / "linear" / "quantized.safetensors"
    ended = reproduce(presets, tmp_path / "again", "--calibrated", f"linear={file}")
    assert ended.status == 0, ended.err
    assert f"{NONE}linear is calibrated elsewhere, '{file}'." in ended.out
    strip = [{**line, "statement": ""} for line in lines(tmp_path / "again" / "mine")]
    assert strip == lines(tmp_path / "out" / "mine"), "the same network"
    assert results(tmp_path / "again" / "mine")["mine"][1]["size"] == file.stat().st_size


def test_random_weights_need_no_file_and_are_said_first(presets, tmp_path):
    (tmp_path / "tiny.safetensors").unlink()
    out, weights = tmp_path / "out", tmp_path / "out" / "mine" / "random_weights" / "model.safetensors"
    planned = reproduce(presets, out, "--weights", "random", "--dry-run")
    assert f"weights: random, '{weights}' is made when the table is" in planned.out and not out.exists()
    ended = reproduce(presets, out, "--weights", "random")
    assert ended.status == 0, ended.err
    assert ended.out.splitlines()[0] == f"{NONE}the weights of table 'mine' are random, '{weights}'"
    assert (out / "mine" / "table.txt").read_text().splitlines()[1].startswith(f"{NONE}the weights are random")
    assert all(f"--ckpt {weights}" in row["command"] for row in results(out / "mine")["mine"])
    before = weights.stat().st_mtime_ns
    assert reproduce(presets, out, "--weights", "random").status == 0
    assert weights.stat().st_mtime_ns == before, "made once"


def test_random_weights_of_a_latent_model(classes, tmp_path):
    path = classes / "mine" / "table.yaml"
    content = yaml.safe_load(path.read_text())
    content["arguments"]["config"] = str(tmp_path / "latent" / "config.yaml")
    path.write_text(yaml.safe_dump(content))
    (tmp_path / "latent" / "model.safetensors").unlink()
    ended = reproduce(classes, tmp_path / "out", "--weights", "random")
    assert ended.status == 0, ended.err
    assert len(list((tmp_path / "out" / "mine" / "fp" / "img").iterdir())) == 6


def test_a_dry_run_says_what_is_missing_and_writes_nothing(presets, tmp_path):
    (tmp_path / "tiny.safetensors").unlink()
    path = presets / "mine" / "table.yaml"
    path.write_text(path.read_text() + "reference:\n  how: ask its authors\n")
    ended = reproduce(presets, tmp_path / "out", "--dry-run")
    assert ended.status == 0, ended.err
    assert f"weights: missing, not at {tmp_path / 'tiny.safetensors'}: made by hand" in ended.out
    assert "reference: missing: give --reference: ask its authors" in ended.out
    assert re.search(rf"^linear +to be calibrated, 0 of {IMAGES} images +0:00:0\d ", ended.out, re.MULTILINE)
    assert re.search(r"^all +0\.0 hours ", ended.out, re.MULTILINE)
    assert f"--logdir {tmp_path / 'out' / 'mine' / 'linear'}" in ended.out, "its command line"
    assert not (tmp_path / "out").exists()


def test_a_run_that_fails_ends_the_table(presets, tmp_path):
    (tmp_path / "tiny.safetensors").write_bytes(b"torn")
    ended = reproduce(presets, tmp_path / "out")
    assert ended.status == 2
    assert re.match(r"error: 'mine: full precision': .*tiny\.safetensors' ", ended.err) and ended.err.count("\n") == 1
    assert not (tmp_path / "out" / "mine" / "linear").exists()


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
