"""Latent diffusion models as the scripts use them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ldm.guidance import guided
from ldm.models.autoencoder import AutoencoderKL
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.encoders.modules import ClassEmbedder, FrozenCLIPEmbedder
from ldm.util import NotAvailable, instantiate_from_config, parameter_types
from qdiff.files.images import WRITTEN

__all__ = [
    "AutoencoderKL",
    "ClassEmbedder",
    "FrozenCLIPEmbedder",
    "LatentDiffusion",
    "NotAvailable",
    "build",
    "decode",
    "guided",
    "image_shape",
    "parameter_types",
    "probe",
]

DECODED = 2**18  # pixels of the images that are decoded at a time, four of 256 x 256


def build(config: Mapping) -> LatentDiffusion:
    """The model of a configuration. Raises ValueError for anything else than a `LatentDiffusion`."""
    model = instantiate_from_config(config["model"])
    if not isinstance(model, LatentDiffusion):
        raise ValueError(f"model.target is {type(model).__name__}, not LatentDiffusion")
    return model


def probe(latent: LatentDiffusion) -> None:
    """Predict and decode one latent of a model without conditions, with classes or text; cheap on the meta device.

    Raises:
        ValueError, RuntimeError, TypeError: the parts of the model do not fit each other.
    """
    conditioner = latent.cond_stage_model
    if not isinstance(conditioner, ClassEmbedder | FrozenCLIPEmbedder | None):
        return
    z = torch.zeros(1, latent.channels, latent.image_size, latent.image_size)
    t = torch.zeros(1, dtype=torch.long)
    condition = conditioner and torch.zeros(1, *conditioner.context_shape)
    eps = latent.apply_model(z, t, condition)
    if eps.shape != z.shape:
        raise ValueError(f"the UNet gives {eps.shape[1]} channels for latents of {z.shape[1]}")
    channels = latent.decode_first_stage(z).shape[1]
    if channels not in WRITTEN:
        raise ValueError(f"the first stage gives images of {channels} channels: they have 1 (grey) or 3 (RGB)")


def image_shape(latent: LatentDiffusion, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """(C, H, W) of the image that a latent of `shape`, (C, h, w), is decoded to."""
    (channels, height, width), first = shape, latent.first_stage_model
    channels = getattr(first, "out_channels", channels)  # the identity keeps them
    return channels, first.factor * height, first.factor * width


def decode(latent: LatentDiffusion, z: Tensor) -> Tensor:
    """Latents (B, C, h, w) -> images (B, 1 or 3, H, W), a few at a time: the decoder needs the most memory."""
    pixels = z.shape[-1] * z.shape[-2] * latent.first_stage_model.factor**2
    return torch.cat([latent.decode_first_stage(part) for part in z.split(max(1, DECODED // pixels))])
