"""Configurations of latent diffusion models: YAML files with the published `target:` paths."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from qdiff.cli.config import one_line, read_yaml
from qdiff.errors import UserError

if TYPE_CHECKING:
    from torch import nn

CHECKPOINTS = ("model.ckpt", "model.safetensors")
CONFIG = "config.yaml"


def locate(base: Path, config: Path | None) -> tuple[Path, Path]:
    """The files of a model.

    Args:
        base: a checkpoint, or the folder of one as published ones are laid out: `model.ckpt` (or `model.safetensors`)
            and `config.yaml`.
        config: the configuration, if it is not `config.yaml` beside the checkpoint.

    Returns:
        paths of the checkpoint and of the configuration.

    Raises:
        UserError: one of them is not there.
    """
    folder = base if base.is_dir() else base.parent
    found = [path for name in CHECKPOINTS if (path := folder / name).is_file()] if base.is_dir() else [base]
    if not found or not found[0].is_file():
        raise UserError(f"no model in -r {base}: give a checkpoint, or a folder with {' or '.join(CHECKPOINTS)}")
    config = config or folder / CONFIG
    if not config.is_file():
        raise UserError(f"no {config}: put the model's {CONFIG} there, or give it with --config")
    return found[0], config


def load_latent_config(path: Path, overrides: Sequence[str] = ()) -> DictConfig:
    """Read the configuration of a latent model.

    Args:
        path: the YAML file.
        overrides: words such as `model.params.timesteps=500`.

    Raises:
        UserError: no such file, no YAML, no section `model` with a `target`, an override of a key that the file does
            not have, or with another type.
    """
    config = read_yaml(path)
    if not isinstance(config.get("model"), DictConfig) or "target" not in config.model:
        raise UserError(f"'{path}' has no section 'model' with a target: give the configuration of a latent model")
    for word in overrides:
        _override(config, word, path)
    return config


def build_latent(config: DictConfig, path: Path) -> "nn.Module":
    """The model of a configuration, its parameters drawn at random. Raises UserError where there is none."""
    from qdiff.adapters.latent_diffusion import build

    try:
        return build(config)
    except (ValueError, IndexError, ZeroDivisionError, RuntimeError, TypeError, AttributeError, KeyError) as e:
        raise UserError(f"'{path}' describes no latent model ({one_line(e)}): correct its section 'model'") from e


def _override(config: DictConfig, word: str, path: Path) -> None:
    """Carry out one `key=value`, in place."""
    key = word.partition("=")[0]
    known = _keys(config)
    if key not in known:
        close = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {close[0]}?" if close else "give one of its keys"
        raise UserError(f"'{word}': '{path}' has no key '{key}': {hint}")
    try:
        value = OmegaConf.select(OmegaConf.from_dotlist([word]), key)
    except (YAMLError, OmegaConfBaseException) as e:
        raise UserError(f"'{word}' has no valid value ({one_line(e)}): correct it") from e
    before = OmegaConf.select(config, key)
    kinds = (int, float) if type(before) is float else type(before)
    if before is not None and (not isinstance(value, kinds) or isinstance(value, bool) != isinstance(before, bool)):
        raise UserError(f"'{word}': '{path}' has {key}: {before}, a {_name(before)}: give one of that kind")
    OmegaConf.update(config, key, value)


def _keys(config: DictConfig, prefix: str = "") -> list[str]:
    """Dotted names of everything that is no section."""
    found = []
    for name, value in config.items():
        found += _keys(value, f"{prefix}{name}.") if isinstance(value, DictConfig) else [f"{prefix}{name}"]
    return found


def _name(value: object) -> str:
    names = {bool: "truth value", int: "whole number", float: "number", str: "word", ListConfig: "list"}
    return names.get(type(value), type(value).__name__)
