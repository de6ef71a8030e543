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
    """Keys of the section `data` that sampling needs; others may stand beside them."""

    dataset: str
    image_size: int
    channels: int
    rescaled: bool


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
        every section of the file, those of `SECTIONS` with values of the right types.

    Raises:
        UserError: no such file, no YAML, a section or key is missing, or a value is not what it must be.
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
    return config


def build_network(config: DictConfig, path: str | Path) -> "nn.Module":
    """The network of a configuration, its parameters drawn at random. Raises UserError where there is none."""
    from qdiff.adapters import adapter_of

    try:
        return adapter_of("ddim").build(config)
    except (ValueError, IndexError, ZeroDivisionError, RuntimeError) as e:
        raise UserError(f"'{path}' describes no network ({one_line(e)}): correct its section 'model'") from e


def _check(path: str | Path, name: str, given: DictConfig, section: DictConfig) -> None:
    """Give the section's keys in `given` their types, in place."""
    for key in section:
        if key not in given:
            raise UserError(f"'{path}' lacks {name}.{key}: add it")
        try:
            OmegaConf.update(section, key, given[key], merge=False)
            given[key] = value = section[key]
        except OmegaConfBaseException as e:
            raise UserError(f"'{path}': {name}.{key} is wrong ({one_line(e)}): correct it") from e
        if isinstance(value, int) and not isinstance(value, bool) and value < 1:
            raise UserError(f"'{path}': {name}.{key} is {value}: make it at least 1")


def one_line(error: Exception) -> str:
    """What an error says, in one line of at most 200 characters and without OmegaConf's details."""
    return " ".join(str(error).partition("full_key:")[0].split())[:200]
