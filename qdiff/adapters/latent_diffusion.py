"""Latent diffusion models as the scripts use them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.encoders.modules import ClassEmbedder
from ldm.util import instantiate_from_config

__all__ = ["ClassEmbedder", "LatentDiffusion", "build", "decode"]

DECODED = 2**14  # elements of the latents that are decoded at a time, four of LDM-4 at 256 x 256


def build(config: Mapping) -> LatentDiffusion:
    """The model of a configuration. Raises ValueError for anything else than a `LatentDiffusion`."""
    model = instantiate_from_config(config["model"])
    if not isinstance(model, LatentDiffusion):
        raise ValueError(f"model.target is {type(model).__name__}, not LatentDiffusion")
    return model


def decode(latent: LatentDiffusion, z: Tensor) -> Tensor:
    """Latents (B, C, h, w) -> images (B, 3, H, W), a few at a time: the decoder needs the most memory."""
    at_a_time = max(1, DECODED // (z.shape[-1] * z.shape[-2]))
    return torch.cat([latent.decode_first_stage(part) for part in z.split(at_a_time)])
