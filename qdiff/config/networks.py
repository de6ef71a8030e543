"""The network that predicts noise, from the configuration of a pixel-space or latent model."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig, OmegaConf

from qdiff.config.latent import (
    build_latent,
    build_unet,
    check_latent_config,
    describes_latent,
    example_call,
    load_latent_config,
)
from qdiff.config.pixel import build_network, check_config, load_config
from qdiff.config.schema import check_references, read_yaml

if TYPE_CHECKING:
    from torch import nn

    from qdiff.calls import Call

RECOMMENDED = ("sampler", "steps", "skip_type", "eta", "scale")  # keys of the section `sampling`: defaults in Python


def is_latent(path: Path) -> bool:
    """Return whether a configuration is that of a latent model. Raises UserError if it cannot be read."""
    return describes_latent(read_yaml(path))


def load_network(path: Path) -> tuple[DictConfig, "nn.Module"]:
    """Read a configuration and build its network with random parameters. Raises UserError if it describes none."""
    if is_latent(path):
        config = load_latent_config(path)
        return config, build_unet(config, path)
    config = load_config(path)
    return config, build_network(config, path)


def network_shapes(config: DictConfig, path: Path) -> tuple["nn.Module", "Call"]:
    """Build the network of a configuration without values, and a call of it for one image, on the meta device.

    Args:
        config: as a YAML file or the header of a quantized file has it; completed in place.
        path: the file, for error messages.

    Raises:
        UserError: it describes no network that is available.
    """
    from qdiff.adapters.ddim.samplers import example
    from qdiff.calls import Call

    check_references(config, path)
    if describes_latent(config):
        latent = build_latent(check_latent_config(config, path), path, empty=True)
        return latent.model.diffusion_model.eval(), example_call(latent, path).to("meta")
    network = build_network(check_config(config, path), path, empty=True)
    return network.eval(), Call(example(config.data)).to("meta")


def plain(config: DictConfig) -> dict[str, Any]:
    """Return a configuration as plain JSON values, as quantized files and run folders keep it.

    Recommended settings of sampling are left out, because they say nothing about the network or a run.
    """
    values = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    sampling = {key: value for key, value in (values.pop("sampling", None) or {}).items() if key not in RECOMMENDED}
    return values | ({"sampling": sampling} if sampling else {})
