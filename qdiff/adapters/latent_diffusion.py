"""Latent diffusion models as the scripts use them."""

from collections.abc import Mapping

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.util import instantiate_from_config


def build(config: Mapping) -> LatentDiffusion:
    """The model of a configuration. Raises ValueError for anything else than a `LatentDiffusion`."""
    model = instantiate_from_config(config["model"])
    if not isinstance(model, LatentDiffusion):
        raise ValueError(f"model.target is {type(model).__name__}, not LatentDiffusion")
    return model
