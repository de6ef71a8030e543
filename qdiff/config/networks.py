"""The network that predicts noise, from the configuration of a pixel-space or latent model."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig, OmegaConf

from qdiff.config.latent import build_unet, load_latent_config
from qdiff.config.pixel import build_network, load_config
from qdiff.config.schema import read_yaml

if TYPE_CHECKING:
    from torch import nn

RECOMMENDED = ("sampler", "steps", "skip_type", "eta", "scale")  # keys of the section `sampling`: defaults in Python


def is_latent(path: Path) -> bool:
    """Return whether a configuration is that of a latent model. Raises UserError if it cannot be read."""
    model = read_yaml(path).get("model")
    return isinstance(model, DictConfig) and "target" in model


def load_network(path: Path) -> tuple[DictConfig, "nn.Module"]:
    """Read a configuration and build its network with random parameters. Raises UserError if it describes none."""
    if is_latent(path):
        config = load_latent_config(path)
        return config, build_unet(config, path)
    config = load_config(path)
    return config, build_network(config, path)


def plain(config: DictConfig) -> dict[str, Any]:
    """Return a configuration as plain JSON values, as quantized files and run folders keep it.

    Recommended settings of sampling are left out, because they say nothing about the network or a run.
    """
    values = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    sampling = {key: value for key, value in (values.pop("sampling", None) or {}).items() if key not in RECOMMENDED}
    return values | ({"sampling": sampling} if sampling else {})
