"""Configurations of latent diffusion models: YAML files with the published `target:` paths."""

from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from qdiff.cli.config import one_line, read_yaml
from qdiff.errors import UserError

if TYPE_CHECKING:
    from torch import nn


def load_latent_config(path: Path) -> DictConfig:
    """Read the configuration of a latent model.

    Raises:
        UserError: no such file, no YAML, or no section `model` with a `target`.
    """
    config = read_yaml(path)
    if not isinstance(config.get("model"), DictConfig) or "target" not in config.model:
        raise UserError(f"'{path}' has no section 'model' with a target: give the configuration of a latent model")
    return config


def build_latent(config: DictConfig, path: Path) -> "nn.Module":
    """The model of a configuration, its parameters drawn at random. Raises UserError where there is none."""
    from qdiff.adapters.latent_diffusion import build

    try:
        return build(config)
    except (ValueError, IndexError, ZeroDivisionError, RuntimeError, TypeError, AttributeError) as e:
        raise UserError(f"'{path}' describes no latent model ({one_line(e)}): correct its section 'model'") from e
