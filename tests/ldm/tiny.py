"""Small latent models as a user has them: a folder with `config.yaml` and a checkpoint."""

from pathlib import Path

import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from ldm.models.diffusion.ddpm import LatentDiffusion
from tests.ldm.golden import golden_model

CLASSES = "ldm_class_w4a8"  # 10 classes and "no class"; vector-quantized first stage
AVERAGED = "ldm_kl_w8a8"  # unconditional, with averaged weights; variational first stage
LOW_ATTENTION = {"attention_resolutions": [2]}


def tiny_latent(name: str) -> LatentDiffusion:
    """The model of a golden case with attention on the lower level alone, which makes it twice as fast."""
    return golden_model(name, **LOW_ATTENTION)[0]


def write_latent(name: str, folder: Path) -> LatentDiffusion:
    """Write `tiny_latent` to `folder`, one with averages as Lightning does.

    Returns:
        the model with the weights that are sampled.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model, case = golden_model(name, **LOW_ATTENTION)
    config = case.settings.config
    if name == CLASSES:
        config.model.params.cond_stage_config.params.null_class = 10
    OmegaConf.save(config, folder / "config.yaml")
    if model.model_ema is None:
        save_file(model.state_dict(), folder / "model.safetensors")
    else:
        torch.save({"state_dict": model.state_dict(), "global_step": 7}, folder / "model.ckpt")
    model.adopt_ema()
    return model
