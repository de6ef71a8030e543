"""Latent diffusion models: build, check and decode them, and ask what kind of conditioner and first stage they have."""

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from ldm.guidance import Condition, guided
from ldm.models.autoencoder import AutoencoderKL
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.encoders.modules import ClassEmbedder, FrozenCLIPEmbedder
from ldm.util import NotAvailable, instantiate_from_config, parameter_types
from qdiff.files.images import WRITTEN

__all__ = [
    "AutoencoderKL",
    "ClassConditioner",
    "Condition",
    "LatentDiffusion",
    "NotAvailable",
    "TextConditioner",
    "build",
    "class_conditioner_of",
    "decode",
    "example",
    "guided",
    "image_shape",
    "kl_first_stage_of",
    "parameter_types",
    "probe",
    "text_conditioner_of",
]

# For annotations; the functions below tell which kind a model has
ClassConditioner: TypeAlias = ClassEmbedder
TextConditioner: TypeAlias = FrozenCLIPEmbedder

DECODED = 2**18  # pixels of the images that are decoded at a time, four of 256 x 256


def class_conditioner_of(latent: LatentDiffusion) -> ClassConditioner | None:
    """Return the conditioner of a class-conditional model; None for other models."""
    conditioner = latent.cond_stage_model
    return conditioner if isinstance(conditioner, ClassEmbedder) else None


def text_conditioner_of(latent: LatentDiffusion) -> TextConditioner | None:
    """Return the text encoder of a text-to-image model; None for other models."""
    conditioner = latent.cond_stage_model
    return conditioner if isinstance(conditioner, FrozenCLIPEmbedder) else None


def _conditioner_of(latent: LatentDiffusion) -> ClassConditioner | TextConditioner | None:
    return class_conditioner_of(latent) or text_conditioner_of(latent)


def kl_first_stage_of(latent: LatentDiffusion) -> AutoencoderKL | None:
    """Return the first stage if it is a variational autoencoder, which encodes to a distribution; else None."""
    first_stage = latent.first_stage_model
    return first_stage if isinstance(first_stage, AutoencoderKL) else None


def build(config: Mapping) -> LatentDiffusion:
    """Build the model of a configuration, its weights drawn at random.

    Raises:
        ValueError: the configuration describes anything but a `LatentDiffusion`; `NotAvailable` if it asks for parts
            of the published code that are missing here.
    """
    model = instantiate_from_config(config["model"])
    if not isinstance(model, LatentDiffusion):
        raise ValueError(f"model.target is {type(model).__name__}, not LatentDiffusion")
    return model


def example(latent: LatentDiffusion) -> tuple[Tensor, ...]:
    """Return arguments of the UNet for one latent, zeros: z_t, t and the condition, if it takes one.

    Raises:
        NotAvailable: the conditions are other than classes and texts.
    """
    conditioner = _conditioner_of(latent)
    if latent.cond_stage_model is not conditioner:
        raise NotAvailable(f"models conditioned by {type(latent.cond_stage_model).__name__} are not available")
    z = torch.zeros(1, latent.channels, latent.image_size, latent.image_size)
    condition = (torch.zeros(1, *conditioner.context_shape),) if conditioner else ()
    return z, torch.zeros(1, dtype=torch.long), *condition


def probe(latent: LatentDiffusion) -> None:
    """Predict the noise of one latent and decode it; cheap on the meta device.

    Models with conditions other than classes and texts are not checked.

    Raises:
        ValueError, RuntimeError, TypeError: the parts of the model do not fit each other.
    """
    if latent.cond_stage_model is not _conditioner_of(latent):
        return
    z, t, *condition = example(latent)
    eps = latent.apply_model(z, t, *condition)
    if eps.shape != z.shape:
        raise ValueError(f"the UNet gives {eps.shape[1]} channels for latents of {z.shape[1]}")
    channels = latent.decode_first_stage(z).shape[1]
    if channels not in WRITTEN:
        raise ValueError(f"the first stage gives images of {channels} channels: they have 1 (grey) or 3 (RGB)")


def image_shape(latent: LatentDiffusion, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the shape (C, H, W) of the image to which a latent of `shape`, (C, h, w), is decoded."""
    (channels, height, width), first = shape, latent.first_stage_model
    channels = getattr(first, "out_channels", channels)  # the identity keeps them
    return channels, first.factor * height, first.factor * width


def decode(latent: LatentDiffusion, z: Tensor) -> Tensor:
    """Decode latents (B, C, h, w) to images (B, 1 or 3, H, W), a few at a time: the decoder needs the most memory."""
    pixels = z.shape[-1] * z.shape[-2] * latent.first_stage_model.factor**2
    return torch.cat([latent.decode_first_stage(part) for part in z.split(max(1, DECODED // pixels))])
