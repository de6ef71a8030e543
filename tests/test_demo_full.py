import contextlib
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
from PIL import Image
from safetensors.torch import save_file

from qdiff.calibration import measure
from qdiff.checkpoints.read import read_checkpoint
from qdiff.errors import UserError
from qdiff.evaluation import experiments
from scripts import demo_full as demo
from tests.command_line import script
from tests.ldm.tiny import CLASSES, write_latent
from tests.ldm.tiny_text import write_text_model
from tests.tiny import write_tiny

FILES = {
    "comparison_pixel.png",
    "comparison_latent.png",
    "comparison_text.png",
    "results.json",
    "table.md",
    "report.html",
}
PLOTS = {f"{plot}_{name}" for name in ("pixel", "latent", "text") for plot in ("tradeoff", "differences")}
RUNS = {
    "pixel": ["fp", "linear", "squant", "qdiff", "gptq"],
    "latent": ["fp", "linear_w4a8", "squant_w4a8", "qdiff_w4a8", "gptq_w4a8", "gptq_w8a8"],
    "text": ["fp", "linear_w4a8", "squant_w4a8", "qdiff_w4a8", "gptq_w4a8", "gptq_w8a8"],
}
IMAGES = 3
COUNTS = {"pixel": IMAGES, "latent": IMAGES, "text": 2 * 2}
QUICK = {"max_images": IMAGES, "timesteps": 4, "cali_st": 2, "cali_n": 2, "cali_iters": 2, "cali_iters_a": 2}


def run_demo(words: list, command) -> str:
    """Run the demo with these words, its commands by `command(words) -> exit status`; what it prints."""

    def run_here(words, check):
        return SimpleNamespace(returncode=command(words))

    with (
        mock.patch.object(experiments, "subprocess", SimpleNamespace(run=run_here)),
        mock.patch.object(sys, "argv", ["demo_full.py", *map(str, words)]),
        contextlib.redirect_stdout(io.StringIO()) as out,
    ):
        demo.main()
    return out.getvalue()


def in_process(words: list[str]) -> int:
    """Carry out a command here, which spares it its start, and without measuring the memory of learning."""
    assert words[0] == sys.executable
    with mock.patch.object(measure, "_iteration_bytes", return_value=0):
        ended = script(Path(words[1]).name, *words[2:])
    assert ended.status == 0, ended.err
    return 0


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> list:
    """Tiny networks, few images, few iterations."""
    folder = tmp_path_factory.mktemp("demo")
    write_latent(CLASSES, folder / "latent")
    text = folder / "text"
    save_file(write_text_model(text).state_dict(), text / "model.safetensors")
    (text / "prompts.txt").write_text("red\napple\n")
    (text / "cali_prompts.txt").write_text("red apple\n")
    models = {"config": write_tiny(folder), "latent": folder / "latent", "text": text}
    flags = {**models, "out": folder / "out", **QUICK}
    return [word for name, value in flags.items() for word in (f"--{name}", value)]


@pytest.fixture(scope="module")
def printed(words) -> str:
    return run_demo(words, in_process)


@pytest.fixture
def out(words, printed) -> Path:
    return words[words.index("--out") + 1]


@pytest.fixture
def results(out) -> dict[str, list[dict]]:
    return json.loads((out / "results.json").read_text(encoding="utf-8"))["results"]


def test_everything_is_written_and_named(out, printed):
    plots = {p.name for p in out.iterdir() if p.stem in PLOTS}
    assert len(plots) == len(PLOTS) and {p.name for p in out.iterdir()} == FILES | set(RUNS) | plots
    assert all(str(out / name) in printed for name in FILES)
    for model, runs in RUNS.items():
        assert {p.name for p in (out / model).iterdir()} == set(runs)
        for run in runs:
            assert (out / model / run / "quantized.safetensors").exists() == (run != "fp")
            assert len(list((out / model / run / "img").glob("*.png"))) == COUNTS[model]
    assert Image.open(out / "comparison_pixel.png").width > 4 * 2 * 8
    assert Image.open(out / "comparison_latent.png").height > 5 * 2 * 32, "wide, so one below the other"
    assert Image.open(out / "comparison_text.png").width > 4 * 2 * 32
    assert "red, apple" in (out / "table.md").read_text(), "what its columns show"


def test_results_say_what_the_files_say(out, results):
    for model, runs in RUNS.items():
        fp = results[model][0]
        assert (fp["method"], fp["psnr"], fp["mae"], fp["size"]) == ("FP", None, 0, fp["fp32_size"])
        for run, result in zip(runs[1:], results[model][1:], strict=True):
            file = out / model / run / "quantized.safetensors"
            summary = read_checkpoint(file).summary
            split = not run.startswith("linear")
            bits = 8 if "w8" in run else 4
            assert (summary.weight_bits, summary.activations.bits, summary.split) == (bits, 8, split)
            assert (result["size"], result["fp32_size"]) == (file.stat().st_size, summary.fp32_bytes)
            assert result["psnr"] > 0 and 0 < result["mae"] < 255 and result["frechet"] >= 0
            assert (result["recognised"] is None) == (model != "latent")


def test_more_bits_are_closer(results):
    error = {row["method"]: row["mae"] for row in results["latent"]}
    assert error["closed form W8A8"] < error["closed form W4A8"]


def test_the_commands_are_shown_and_share_seeds_and_data(out, results, printed):
    for model, runs in RUNS.items():
        commands = [result["command"].split() for result in results[model]]
        assert all(result["command"] in printed for result in results[model])
        assert {tuple(w[w.index("--seed") :][:2]) if "--seed" in w else () for w in commands} == {
            () if model == "pixel" else ("--seed", "41")
        }
        assert ["--cali_data_path" in words for words in commands] == [False, False, *[True] * (len(runs) - 2)]
        collected = [(out / model / run / "calibration_data.safetensors").exists() for run in runs]
        assert collected == [False, True, *[False] * (len(runs) - 2)]


def test_the_same_command_goes_on(words, out):
    lost = [out / "pixel" / "qdiff" / "img" / f"{i:06d}.png" for i in range(IMAGES)]
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in out.glob("*/*/img/*.png")}
    results = (out / "results.json").read_bytes()
    for path in lost:
        path.unlink()
    run_demo(words, in_process)
    for path, (content, time) in before.items():
        assert path.read_bytes() == content
        assert (path.stat().st_mtime_ns == time) == (path not in lost)
    assert (out / "results.json").read_bytes() == results


def test_a_command_that_fails_ends_the_demo(tmp_path):
    carried_out = []

    def fails(words):
        carried_out.append(words)
        return 2

    with pytest.raises(UserError, match=r"'FP' ended with status 2.*--out"):
        run_demo(["--out", tmp_path / "out"], fails)
    assert len(carried_out) == 1
    assert not (tmp_path / "out").exists()


def test_a_command_is_a_process(words, capfd):
    method = demo.pixel_space(demo.parse(demo.demo_parser(), list(map(str, words)))).runs[0]
    experiments.Method(method.name, method.folder, [*method.words, "--dry-run"]).run()
    shown = capfd.readouterr().out
    assert method.command in shown
    assert f"sampling: {IMAGES} images, 4 steps" in shown
