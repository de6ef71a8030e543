"""The models that the repository carries: whole, small, and good enough to be looked at."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from qdiff.checkpoint import load_weights
from qdiff.features import FeatureNet
from qdiff.report import read_pictures
from tests.command_line import script

ROOT = Path(__file__).parents[1]
LATENT = ROOT / "models" / "ldm" / "emoji64"


def test_the_latent_model_is_laid_out_as_a_published_one():
    assert {path.name for path in LATENT.iterdir()} >= {"config.yaml", "model.safetensors", "README.md"}
    assert sum(path.stat().st_size for path in LATENT.iterdir()) < 20e6
    config, training = (
        OmegaConf.load(LATENT / "config.yaml"),
        OmegaConf.load(ROOT / "configs" / "latent-diffusion" / "emoji64.yaml"),
    )
    assert config.model == training.model and config.classes == training.classes


@pytest.mark.slow
def test_pictures_look_like_their_category(tmp_path):
    """With guidance, to a classifier that names 73 % of the real pictures right; chance is 11 %."""
    line = f"-r {LATENT} -l {tmp_path} --seed 7 -c 20 --scale 3 -n 18 --batch_size 18"
    assert script("sample_diffusion_ldm.py", *line.split()).status == 0
    net = FeatureNet().eval()
    load_weights(net, ROOT / "models" / "features" / "emoji32" / "classifier.safetensors")
    pictures = FeatureNet.fit_size(read_pictures(sorted((tmp_path / "img").iterdir())))
    assert net.recognised(pictures, torch.arange(18) % 9) >= 0.5
