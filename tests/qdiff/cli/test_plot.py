"""`python -m qdiff plot`: each kind writes its figure, and bad input is one line before anything is computed."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from xml.etree import ElementTree

import pytest
from PIL import Image

import qdiff as api
from qdiff.adapters import no_splits
from qdiff.analysis import split
from qdiff.cli.plot import KINDS
from qdiff.cli.plot_flags import names_of
from qdiff.correction.file import write_correction
from qdiff.errors import UserError
from qdiff.pipelines import load
from tests.command_line import Ended, qdiff, refusal
from tests.ldm.tiny import CLASSES, write_latent
from tests.ldm.tiny_text import write_text_model
from tests.qdiff.correction.tables import make_table
from tests.tiny import write_tiny


class Files(NamedTuple):
    config: Path
    w4: Path
    w8: Path
    mixed: Path
    results: Path
    correction: Path


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Files:
    folder = tmp_path_factory.mktemp("plot")
    config = write_tiny(folder)
    pipe = api.load_pipeline(config, device="cpu", steps=2)
    for bits in (4, 8):
        quantized = api.quantize(pipe, weight_bits=bits, method="linear", timesteps=1, samples=1)
        quantized.save(folder / f"w{bits}" / "quantized.safetensors")
    mixed = api.quantize(pipe, act_bits=8, mixed_precision=4, method="linear", timesteps=2, samples=1)
    mixed.save(folder / "mixed" / "quantized.safetensors")
    row = {"method": "W4", "psnr": 20.0, "size": 10, "fp32_size": 80}
    (folder / "results.json").write_text(json.dumps({"results": {"tiny": [row]}}), encoding="utf-8")
    write_correction(folder / "correction.safetensors", make_table("bias"))
    networks = (folder / name / "quantized.safetensors" for name in ("w4", "w8", "mixed"))
    return Files(config, *networks, folder / "results.json", folder / "correction.safetensors")


def words(kind: str, files: Files, *more: object) -> list[object]:
    model = ["--config", files.config, "--device", "cpu", "--steps", 2, "-n", 1]
    own = {
        "ranges": model,
        "split": model,
        "layers": [*model, "--quantized", files.w4],
        "trajectory": [*model, "--quantized", files.w4, files.w8],
        "images": [*model, "--quantized", files.w4, files.w8],
        "bits": [files.mixed],
        "tradeoff": [files.results],
        "correction": [files.correction],
    }
    return ["plot", kind, *own[kind], *more]


def text_of(path: Path) -> str:
    """The content of an SVG file; matplotlib repeats each text that it draws in a comment."""
    return path.read_text(encoding="utf-8")


SHOWN = {
    "ranges": ["<!-- eps -->", "<!-- minimum to maximum -->", "<!-- 750 -->"],
    "split": ["nin_shortcut -->", "<!-- from the layer below, "],
    "layers": ["<!-- w4: errors within the whole network -->", "<!-- model.mid.block_1 -->"],
    "trajectory": ["<!-- w4 -->", "<!-- w8 -->", "<!-- x after the step, on its own trajectory -->"],
    "images": ["<!-- full precision -->", "<!-- w8: "],
    "bits": ["<!-- signal-to-noise ratio -->", "<!-- PTQD's criterion, SNR^Q a ratio of norms; ", "<!-- 500 -->"],
    "correction": ["<!-- bias, on -->", "<!-- residual deviation, off -->"],
    "tradeoff": ["<!-- tiny -->", "<!-- W4 -->", "<!-- PSNR to full precision [dB] -->"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_writes_its_figure(kind, files, tmp_path):
    out = tmp_path / "new" / f"{kind}.svg"
    steps = ["--steps", 4] if kind == "ranges" else []
    ended = qdiff(*words(kind, files, *steps, "-o", out))
    assert ended == Ended(0, f"written: {out}\n", "")
    assert ElementTree.parse(out).getroot().tag.endswith("svg") and list(out.parent.iterdir()) == [out]
    for text in SHOWN[kind]:
        assert text in text_of(out)


def test_a_latent_model_is_named_as_load_pipeline_takes_it(tmp_path):
    write_latent(CLASSES, tmp_path / "model")
    out = tmp_path / "a.png"
    sites = ["--sites", "*.attn1.*.w"]
    ended = qdiff("plot", "ranges", "-r", tmp_path / "model", "--steps", 1, "--scale", 2, "-n", 2, *sites, "-o", out)
    assert (ended.status, ended.err) == (0, "")
    assert Image.open(out).format == "PNG"


def test_a_text_model_takes_its_prompts(tmp_path):
    write_text_model(tmp_path / "model")
    model = ["-r", tmp_path / "model", "--steps", 1, "-n", 2, "-o", tmp_path / "a.svg"]
    assert qdiff("plot", "split", *model, "--prompt", "red apple", "red").status == 0
    assert "no prompt" in refusal("plot", "split", *model, "--force")


def test_a_layer_and_sites_are_chosen(files, tmp_path):
    out = tmp_path / "a.svg"
    path = "model.up.0.block.1.nin_shortcut"
    assert qdiff(*words("split", files, "--layer", path, "-o", out)).status == 0
    assert f"<!-- {path} -->" in text_of(out)
    assert qdiff(*words("ranges", files, "--sites", "*.conv_??", "-o", out, "--force")).status == 0
    assert "<!-- model.conv_in -->" in text_of(out) and "<!-- eps -->" not in text_of(out)


REFUSALS = {
    "the same bits at all steps": ("plot bits {w4} -o {new}", "give a file calibrated with --mixed_precision"),
    "bits of another file": ("plot bits {results} -o {new}", "is not a whole safetensors file"),
    "unknown kind": ("plot rangs -o {new}", "'rangs' is unknown: did you mean ranges?"),
    "no kind": ("plot", "required: KIND"),
    "no output": ("plot tradeoff {results}", "--out is missing: add --out FILE"),
    "another extension": ("plot tradeoff {results} -o {folder}/a.pdf", "ends neither in .svg nor in .png: choose one"),
    "output is a folder": ("plot tradeoff {results} -o {folder}", "is a folder: give --out the name of a file"),
    "output exists": ("plot tradeoff {results} -o {old}", "exists: choose another --out, or add --force to replace it"),
    "no model": ("plot ranges -o {new}", "no model: add --run DIR, --config FILE or -r MODEL"),
    "missing model": ("plot ranges --config {folder}/none.yml -o {new}", "none.yml"),
    "setting of another model": ("plot ranges --config {config} --scale 2 -o {new}", "has no setting 'scale'"),
    "a value out of range": ("plot ranges --config {config} --eta 2 -o {new}", "--eta: '2' is not a number in 0..1"),
    "flag of another kind": ("plot ranges --config {config} --metric mae -o {new}", "unknown flag --metric"),
    "no quantized file": ("plot layers --config {config} -o {new}", "no quantized network: add --quantized FILE"),
    "full precision": ("plot layers --config {config} --steps 1 --quantized {weights} -o {new}", "tiny.safetensors"),
    "not even a file": ("plot images --config {config} --steps 1 --quantized {results} -o {new}", "results.json"),
    "twice": ("plot images --config {config} --quantized {w4} {w4} -o {new}", "twice: leave one of them out"),
    "no site": (
        "plot ranges --config {config} --steps 1 --sites *.conv_inn -o {new}",
        "--sites *.conv_inn matches none",
    ),
    "too many sites": ("plot ranges --config {config} --steps 1 --sites * -o {new}", ", more than 24: narrow it down"),
    "no shortcut": (
        "plot split --config {config} --steps 1 --layer model.conv_in -o {new}",
        "--layer model.conv_in is no shortcut that can be split",
    ),
    "no correction": ("plot correction {results} -o {new}", "is not a whole safetensors file"),
    "no results file": ("plot tradeoff {config} -o {new}", "is not valid JSON"),
    "other results": ("plot tradeoff {other} -o {new}", "is not a results file"),
    "unknown metric": (
        "plot tradeoff {results} --metric fid -o {new}",
        "--metric fid: the results have no such number",
    ),
    "unknown cost": ("plot tradeoff {results} --cost bops -o {new}", "--cost bops: the results have no such number"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_bad_input_is_one_line(name, files, tmp_path):
    line, says = REFUSALS[name]
    old, other = tmp_path / "old.svg", tmp_path / "other.json"
    old.write_text("old")
    other.write_text('{"format": "another"}')
    places = files._asdict() | {"folder": tmp_path, "new": tmp_path / "new" / "a.svg", "old": old, "other": other}
    message = refusal(
        *(word.format(**places, weights=files.config.with_suffix(".safetensors")) for word in line.split())
    )
    assert says in message
    assert old.read_text() == "old" and sorted(tmp_path.iterdir()) == [old, other]


def test_a_network_without_split_shortcuts_is_refused(files, tmp_path, monkeypatch):
    monkeypatch.setattr(split, "adapter_for", lambda network: SimpleNamespace(splits=no_splits))
    assert "has no shortcut that concatenates two tensors" in refusal(*words("split", files, "-o", tmp_path / "a.svg"))


def test_matplotlib_is_missed_before_anything_is_computed(files, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(load, "load_pipeline", None)  # would raise a TypeError
    assert "pip install 'qdiff[plot]'" in refusal(*words("ranges", files, "-o", tmp_path / "a.svg"))


def test_a_failure_leaves_the_old_file(files, tmp_path):
    out = tmp_path / "a.svg"
    out.write_text("old")
    damaged = tmp_path / "damaged.safetensors"
    shutil.copy(files.w4, damaged)
    damaged.write_bytes(damaged.read_bytes()[:-9])
    model = ["--config", files.config, "--device", "cpu", "--steps", 2]
    assert "damaged.safetensors" in refusal("plot", "layers", *model, "--quantized", damaged, "-o", out, "--force")
    assert out.read_text() == "old"


def test_files_are_named_as_short_as_they_can_be():
    def found(*paths: str) -> list[str]:
        return list(names_of([*map(Path, paths)]))

    assert found("runs/w4a8.safetensors") == ["w4a8"]
    assert found("runs/a/quantized.safetensors", "runs/b/quantized.safetensors", "c.safetensors") == ["a", "b", "c"]
    assert found("a/w4.safetensors", "b/w4.safetensors") == ["a/w4.safetensors", "b/w4.safetensors"]
    with pytest.raises(UserError, match=r"--quantized names 'a/w4\.safetensors' twice"):
        found("a/w4.safetensors", "a/w4.safetensors")
