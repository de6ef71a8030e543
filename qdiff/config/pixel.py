"""Model configurations of the pixel-space networks: YAML files as in `configs/`, read and checked."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from qdiff.errors import UserError

if TYPE_CHECKING:
    from torch import nn


@dataclass
class Data:
    """Keys of the section `data` that sampling needs; others may stand beside them.

    The last four say how the training made x of pixels, see `adapters.ddim_sampling.to_images`.
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


def read_yaml(path: str | Path) -> DictConfig:
    """A YAML file with sections. Raises UserError where there is none."""
    try:
        config = OmegaConf.load(path)
    except OSError as e:
        raise UserError(f"cannot read '{path}' ({e.strerror or e}): give --config the path of a YAML file") from e
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as e:
        raise UserError(f"'{path}' is no valid YAML ({one_line(e)}): correct it") from e
    if not isinstance(config, DictConfig):
        raise UserError(f"'{path}' has no sections: give the configuration of a model")
    return config


def load_config(path: str | Path) -> DictConfig:
    """Read a model configuration.

    Returns:
        every section of the file, those of `SECTIONS` with all of their keys and values of the right types.

    Raises:
        UserError: no such file, no YAML, a section or key is missing, a value is not what it must be, or the values
            ask for what is not available.
    """
    config = read_yaml(path)
    for name, section in SECTIONS.items():
        if not isinstance(config.get(name), DictConfig):
            raise UserError(f"'{path}' has no section '{name}': give the configuration of a pixel-space network")
        _check(path, name, config[name], OmegaConf.structured(section))
    if config.model.type != "simple":
        raise UserError(f"'{path}': model.type '{config.model.type}' is not supported: only 'simple' networks are")
    if not config.model.ch_mult:
        raise UserError(f"'{path}': model.ch_mult is empty: give one multiple of model.ch for each resolution")
    _check_images(path, config)
    return config


def build_network(config: DictConfig, path: str | Path) -> "nn.Module":
    """The network of a configuration, its parameters drawn at random. Raises UserError where there is none."""
    import torch

    from qdiff.adapters import adapter_of
    from qdiff.adapters.ddim.samplers import probe

    build = adapter_of("ddim").build
    try:
        with torch.device("meta"):
            probe(build(config), config.data)
        return build(config)
    except (ValueError, IndexError, ZeroDivisionError, RuntimeError) as e:
        raise UserError(f"'{path}' describes no network ({one_line(e)}): correct its section 'model'") from e


def _check_images(path: str | Path, config: DictConfig) -> None:
    """Refuse what no image can be made of."""
    from qdiff.files.images import WRITTEN

    data, model, channels = config.data, config.model, config.data.channels
    other = "another model is needed"
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
        f"image_mean, an image that was subtracted in training, is not available: {other}": (
            config.get("image_mean") is not None or data.get("image_mean") is not None
        ),
    }
    for what, is_wrong in wrong.items():
        if is_wrong:
            raise UserError(f"'{path}': {what}")


def _check(path: str | Path, name: str, given: DictConfig, section: DictConfig) -> None:
    """Give the section's keys in `given` their types, or their defaults, in place."""
    for key in section:
        if key not in given and OmegaConf.is_missing(section, key):
            raise UserError(f"'{path}' lacks {name}.{key}: add it")
        try:
            if key in given:
                OmegaConf.update(section, key, given[key], merge=False)
            given[key] = value = section[key]
        except OmegaConfBaseException as e:
            raise UserError(f"'{path}': {name}.{key} is wrong ({one_line(e)}): correct it") from e
        if isinstance(value, int) and not isinstance(value, bool) and value < 1:
            raise UserError(f"'{path}': {name}.{key} is {value}: make it at least 1")


def one_line(error: Exception) -> str:
    """What an error says, in one line of at most 200 characters and without OmegaConf's details."""
    return " ".join(str(error).partition("full_key:")[0].split())[:200]
