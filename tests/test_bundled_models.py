"""The models that the repository carries: whole, small, and good enough to be looked at."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from qdiff.evaluation.features import load_feature_net
from qdiff.files.images import read_images
from qdiff.files.prompts import read_prompts
from tests.command_line import script

ROOT = Path(__file__).parents[1]
LATENT = ROOT / "models" / "ldm" / "emoji64"
TEXT = ROOT / "models" / "ldm" / "emoji64-txt2img"


def test_the_latent_model_is_laid_out_as_a_published_one():
    assert {path.name for path in LATENT.iterdir()} >= {"config.yaml", "model.safetensors", "README.md"}
    assert sum(path.stat().st_size for path in LATENT.iterdir()) < 20e6
    config, training = (
        OmegaConf.load(LATENT / "config.yaml"),
        OmegaConf.load(ROOT / "configs" / "latent-diffusion" / "emoji64.yaml"),
    )
    assert config.model == training.model and config.classes == training.classes


@pytest.mark.slow
def test_images_look_like_their_category(tmp_path):
    """With guidance, to a classifier that names 73 % of the real images right; chance is 11 %."""
    line = f"-r {LATENT} -l {tmp_path} --seed 7 -c 20 --scale 3 -n 18 --batch_size 18"
    assert script("sample_diffusion_ldm.py", *line.split()).status == 0
    net = load_feature_net(ROOT / "models" / "features" / "emoji32" / "classifier.safetensors")
    images = read_images(sorted((tmp_path / "img").iterdir()))
    recognised = net.extract(images).logits.argmax(1) == torch.arange(18) % 9
    assert recognised.float().mean() >= 0.5


def test_the_text_model_is_laid_out_as_a_published_one():
    tokenizer = {"vocab.json", "merges.txt"}
    prompts = {"prompts.txt", "cali_prompts.txt"}
    assert {path.name for path in TEXT.iterdir()} >= {
        "config.yaml",
        "model.safetensors",
        "README.md",
    } | tokenizer | prompts
    assert sum(path.stat().st_size for path in TEXT.iterdir()) < 25e6
    config, training = (
        OmegaConf.load(TEXT / "config.yaml"),
        OmegaConf.load(ROOT / "configs" / "latent-diffusion" / "emoji64-txt2img.yaml"),
    )
    assert config.model == training.model
    shown, calibrated = (read_prompts(TEXT / name, "a flag") for name in ("prompts.txt", "cali_prompts.txt"))
    assert len(shown) == 12 and len(set(calibrated)) >= 64 and not set(shown) & set(calibrated)


def test_both_latent_models_have_one_first_stage():
    first, second = (load_file(folder / "model.safetensors") for folder in (LATENT, TEXT))
    keys = [key for key in first if key.startswith("first_stage_model.")]
    assert keys and all(torch.equal(first[key], second[key]) for key in keys)


@pytest.mark.slow
def test_images_have_the_colours_that_a_prompt_names(tmp_path):
    """With little guidance; the colour is that of what is not the white around."""
    (tmp_path / "prompts.txt").write_text("red apple\ngreen apple\nblue heart\n")
    line = f"--config {TEXT / 'config.yaml'} --ckpt {TEXT / 'model.safetensors'} --from-file {tmp_path / 'prompts.txt'}"
    ended = script(
        *("txt2img.py", *line.split()),
        *f"--plms --cond --ddim_steps 20 --scale 3 --n_iter 4 --outdir {tmp_path / 'out'}".split(),
    )
    assert ended.status == 0, ended.err
    images = read_images(sorted((tmp_path / "out" / "img").iterdir())).float()
    for i, channel in enumerate((0, 1, 2)):
        shown = images[i::3].permute(1, 0, 2, 3).flatten(1)
        shown = shown[:, shown.amin(0) < 200]
        assert shown.mean(1).argmax() == channel
