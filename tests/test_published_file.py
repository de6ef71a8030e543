"""The Stable Diffusion commands of the documents on the bundled text model, dressed up as the published file."""

import argparse
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qdiff.files.images import read_images
from tests.command_line import Ended, script

ROOT = Path(__file__).parents[1]
PAPER = ROOT / "docs" / "paper_commands.md"
BUNDLED = ROOT / "models" / "ldm" / "emoji64-txt2img"
COMMANDS = re.findall(r"^python scripts/txt2img\.py (.*<.*)$", PAPER.read_text(), re.MULTILINE)
SHORT = "--ddim_steps 4 --n_samples 2 --n_iter 1 --device cpu"
LITTLE = "--cali_st 2 --cali_n 1 --cali_batch_size 2 --cali_iters 1 --cali_iters_a 1"


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A Lightning pickle in half precision throughout, with the counters of averages that the model does without."""
    state = load_file(BUNDLED / "model.safetensors") | {
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.num_updates": torch.tensor(470000.0),
    }
    module = "pytorch_lightning.callbacks.model_checkpoint"
    callback = type("ModelCheckpoint", (), {"__module__": module})
    parts = module.split(".")
    path = tmp_path_factory.mktemp("published") / "sd-v1-4.ckpt"
    with pytest.MonkeyPatch.context() as patch:
        for i in range(len(parts)):
            patch.setitem(sys.modules, ".".join(parts[: i + 1]), argparse.Namespace(ModelCheckpoint=callback))
        content = {
            "epoch": 3,
            "global_step": 470000,
            "pytorch-lightning_version": "1.4.2",
            "state_dict": {key: x.half() if x.is_floating_point() else x for key, x in state.items()},
            "callbacks": {callback: {"best_model_score": None}},
        }
        torch.save(content, path)
    return path


def run(command: str, published: Path, out: Path, *more: str, **blanks: object) -> Ended:
    """A command of the document with its blanks filled in."""
    for name, value in blanks.items():
        command = re.sub(f"<{name}[^>]*>", str(value), command)
    where = f"--config {BUNDLED / 'config.yaml'} --ckpt {published} --clip_path {BUNDLED} {SHORT}"
    return script("txt2img.py", *shlex.split(f"{command} {where}"), "--outdir", out, *more)


def test_every_command_of_the_document(published, tmp_path):
    """In full precision, calibrated briefly, and sampled with what was calibrated."""
    *sample, calibrate = COMMANDS
    assert len(sample) == 2 and all("--resume" in command for command in sample)
    plain = run("--prompt 'red apple' --plms --cond", published, tmp_path / "fp")
    assert plain.status == 0, plain.err
    assert "model_ema.decay" in (tmp_path / "fp" / "log.txt").read_text()

    calibrate = calibrate.replace(" --cali_data_path <cali_data_path>", "").replace(" --outdir <output_path>", "")
    calibrate = re.sub(r" --cali_(st|n|batch_size) \d+", "", calibrate)
    ended = run(calibrate, published, tmp_path / "q", *LITTLE.split(), **{"4": 4})
    assert ended.status == 0, ended.err
    for i, line in enumerate(sample):
        command = line.replace(" --outdir <output_path>", "").replace("--n_samples 5 ", "")
        blanks = {"4": 4, "prompt": "'red apple'", "quantized": tmp_path / "q" / "quantized.safetensors"}
        ended = run(command, published, tmp_path / f"{i}", **blanks)
        assert ended.status == 0, ended.err
        images = read_images(sorted((tmp_path / f"{i}" / "img").iterdir())).float()
        exact = read_images(sorted((tmp_path / "fp" / "img").iterdir())).float()
        assert images.shape == (2, 3, 64, 64)
        assert 0 < (images - exact).abs().mean() < 40, "close to full precision, and not the same"
