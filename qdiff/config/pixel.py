"""Configurations of pixel-space networks: YAML files as in `configs/`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from qdiff.config.schema import checked_section, one_line, read_yaml
from qdiff.errors import UserError

if TYPE_CHECKING:
    from torch import nn


@dataclass
class Data:
    """Keys of the section `data` that sampling needs; the section may have others.

    The last four state how training converted pixels to x; see `qdiff.adapters.ddim.samplers.to_images`.
    """

    dataset: str
    image_size: int
    channels: int
    rescaled: bool
    logit_transform: bool = False
    uniform_dequantization: bool = False
    gaussian_dequantization: bool = False


@dataclass
class Model:
    """Keys of the section `model`."""

    type: str
    in_channels: int
    out_ch: int
    ch: int
    ch_mult: list[int]
    num_res_blocks: int
    attn_resolutions: list[int]
    dropout: float
    resamp_with_conv: bool


@dataclass
class Diffusion:
    """Keys of the section `diffusion`."""

    beta_schedule: str
    beta_start: float
    beta_end: float
    num_diffusion_timesteps: int


@dataclass
class Sampling:
    """Keys of the section `sampling`."""

    batch_size: int


SECTIONS = {"data": Data, "model": Model, "diffusion": Diffusion, "sampling": Sampling}
REMEDY = "give the configuration of a pixel-space network"


def load_config(path: str | Path) -> DictConfig:
    """Read a model configuration.

    Returns:
        every section of the file; those of `SECTIONS` have all of their keys, with values of the right types.

    Raises:
        UserError: the file is missing or not YAML, a section or key is missing, a value has another type, or the
            values describe a model that is not available.
    """
    return check_config(read_yaml(path), path)


def check_config(config: DictConfig, path: str | Path) -> DictConfig:
    """Return a configuration, completed in place, as `load_config` returns that of a file; `path` is for its errors."""
    for name, schema in SECTIONS.items():
        for key, value in checked_section(config, name, schema, path, REMEDY).items():
            config[name][key] = value
    if config.model.type != "simple":
        raise UserError(f"'{path}': model.type '{config.model.type}' is not supported: use a 'simple' network")
    if not config.model.ch_mult:
        raise UserError(f"'{path}': model.ch_mult is empty: give one multiple of model.ch for each resolution")
    _check_images(path, config)
    return config


def build_network(config: DictConfig, path: str | Path, *, empty: bool = False) -> "nn.Module":
    """Build the network of a configuration.

    Args:
        config: as `load_config` returns it.
        path: its file, for the error message.
        empty: build it on the meta device; otherwise its parameters are random.

    Raises:
        UserError: the section `model` does not describe a network for such images.
    """
    import torch

    from qdiff.adapters import adapter_of
    from qdiff.adapters.ddim.samplers import probe

    build = adapter_of("ddim").build
    try:
        with torch.device("meta"):
            network = build(config)
            probe(network, config.data)
        return network if empty else build(config)
    except (ValueError, IndexError, ZeroDivisionError, RuntimeError) as e:
        raise UserError(f"'{path}' describes no network ({one_line(e)}): correct its section 'model'") from e


def _check_images(path: str | Path, config: DictConfig) -> None:
    """Check that the network's output can be converted to images. Raises UserError otherwise."""
    from qdiff.files.images import WRITTEN

    data, model, channels = config.data, config.model, config.data.channels
    other = "use another model"
    wrong = {
        f"data.channels is {channels}: images have 1 (grey) or 3 (RGB), {other}": channels not in WRITTEN,
        f"model.in_channels is {model.in_channels}, data.channels {channels}: make them equal": (
            model.in_channels != channels
        ),
        f"model.out_ch is {model.out_ch}, twice data.channels: learned variances (learn_sigma) are not available, "
        f"{other}": model.out_ch == 2 * channels,
        f"model.out_ch is {model.out_ch}, data.channels {channels}: make them equal": model.out_ch != channels,
        "data.rescaled and data.logit_transform contradict each other: set one of them to false": (
            data.rescaled and data.logit_transform
        ),
        f"image_mean, a mean image subtracted in training, is not available: {other}": (
            config.get("image_mean") is not None or data.get("image_mean") is not None
        ),
    }
    for what, is_wrong in wrong.items():
        if is_wrong:
            raise UserError(f"'{path}': {what}")
