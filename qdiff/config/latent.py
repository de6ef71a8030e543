"""Configurations of latent diffusion models: YAML files with the published `target:` paths."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from qdiff.config.schema import one_line, read_yaml
from qdiff.errors import UserError, suggestion
from qdiff.files.formats import folder_kind

if TYPE_CHECKING:
    from torch import nn

    from qdiff.adapters.ldm.models import LatentDiffusion
    from qdiff.calls import Call

CHECKPOINTS = ("model.ckpt", "model.safetensors")
CONFIG = "config.yaml"
CONTAINERS = {Mapping: DictConfig, Sequence: ListConfig}  # annotation -> type in a configuration
NAMES: dict[type, str] = {bool: "a truth value", int: "a whole number", float: "a number", str: "a word"}
NAMES |= {ListConfig: "a list", DictConfig: "a section", NoneType: "null"}


def find_config(base: Path, config: Path | None) -> Path:
    """Return the path of a model's configuration.

    Args:
        base: checkpoint, or folder of the model.
        config: the path; None means `config.yaml` in the folder.

    Raises:
        UserError: the file does not exist.
    """
    config = config or (base if base.is_dir() else base.parent) / CONFIG
    if not config.is_file():
        missing = "" if base.exists() else f"no '{base}' and "
        raise UserError(f"{missing}no '{config}': put the model's {CONFIG} there, or give it with --config")
    return config


def find_checkpoint(base: Path, flag: str) -> Path:
    """Return the checkpoint `base`, or the one in the folder `base`.

    Args:
        base: checkpoint, or folder of the model.
        flag: the flag or argument that names it, for the error message.

    Raises:
        UserError: there is no checkpoint.
    """
    candidates = [base / name for name in CHECKPOINTS] if base.is_dir() else [base]
    found = [path for path in candidates if path.is_file()]
    if not found:
        if base.is_dir() and (kind := folder_kind(base)):
            raise UserError(f"{flag} {base} is {kind}")
        raise UserError(f"no model in {flag} '{base}': give a checkpoint, or a folder with {' or '.join(CHECKPOINTS)}")
    return found[0]


def load_latent_config(path: Path, overrides: Sequence[str] = ()) -> DictConfig:
    """Read the configuration of a latent model.

    Args:
        path: the YAML file.
        overrides: such as "model.params.timesteps=500"; each names a key of the file, or a parameter of the class of
            a section.

    Raises:
        UserError: the file is missing or not YAML, has no section `model` with a `target`, or lacks a value; or an
            override names another key or has another type.
    """
    config = check_latent_config(read_yaml(path), path)
    for word in overrides:
        _override(config, word, path)
    return config


def check_latent_config(config: DictConfig, path: Path) -> DictConfig:
    """Return a configuration, its references resolved in place, as `load_latent_config` returns that of a file.

    Raises:
        UserError: it has no section `model` with a `target`, or lacks a value; `path` is named.
    """
    if not describes_latent(config):
        raise UserError(f"'{path}' has no section 'model' with a target: give the configuration of a latent model")
    try:
        OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as e:
        raise UserError(f"'{path}' lacks a value ({one_line(e)}): add it") from e
    OmegaConf.resolve(config)
    return config


def describes_latent(config: DictConfig) -> bool:
    """Return whether a configuration is that of a latent model."""
    model = config.get("model")
    return isinstance(model, DictConfig) and "target" in model


def build_latent(config: DictConfig, path: Path, *, empty: bool = False) -> "LatentDiffusion":
    """Build the model of a configuration.

    Args:
        config: as `load_latent_config` returns it.
        path: its file, for the error message.
        empty: build it on the meta device; otherwise its parameters are random.

    Raises:
        UserError: the configuration describes no available model, or its parts do not fit each other.
    """
    from qdiff.adapters.ldm.models import build

    with _described(path):
        checked = _empty(OmegaConf.to_yaml(config.model))
        return copy.deepcopy(checked) if empty else build(config)


@lru_cache(maxsize=4)  # a table of results builds each of its rows several times
def _empty(model: str) -> "LatentDiffusion":
    """Build the model of a section `model`, as YAML, on the meta device, and check that its parts fit."""
    import torch

    from qdiff.adapters.ldm.models import build, probe

    with torch.device("meta"):
        latent = build({"model": OmegaConf.create(model)})
        probe(latent)
    return latent


def build_unet(config: DictConfig, path: Path) -> "nn.Module":
    """Build the UNet of a configuration alone, with random parameters. Raises UserError as `build_latent`."""
    from qdiff.adapters import adapter_of

    with _described(path):
        return adapter_of("ldm").build(config)


def example_call(latent: "LatentDiffusion", path: Path) -> "Call":
    """Return a call of a model's UNet for one latent, zeros. Raises UserError if its conditions are not available."""
    from qdiff.adapters.ldm.models import example
    from qdiff.calls import Call

    with _described(path):
        return Call(example(latent))


@contextmanager
def _described(path: Path) -> Iterator[None]:
    """Turn any error of an invalid configuration into a UserError of one line."""
    from qdiff.adapters.ldm.models import NotAvailable

    try:
        yield
    except NotAvailable as e:
        raise UserError(f"'{path}': {e}: give the configuration of another model") from e
    except (ValueError, LookupError, ArithmeticError, RuntimeError, TypeError, AttributeError) as e:
        raise UserError(f"'{path}' describes no latent model ({one_line(e)}): correct its section 'model'") from e


def _override(config: DictConfig, word: str, path: Path) -> None:
    """Apply one `key=value` to the configuration, in place. Raises UserError if it does not fit."""
    key = word.partition("=")[0]
    keys, parameters = _keys(config), _parameters(config)
    if key not in keys and key not in parameters:
        hint = suggestion(key, [*keys, *parameters]) or "give one of its keys"
        raise UserError(f"'{word}': '{path}' has no key '{key}': {hint}")
    try:
        value = OmegaConf.select(OmegaConf.from_dotlist([word]), key)
    except (YAMLError, OmegaConfBaseException) as e:
        raise UserError(f"'{word}' has no valid value ({one_line(e)}): correct it") from e
    before = OmegaConf.select(config, key)
    kinds = _kinds(parameters[key]) if key in parameters else [type(before)]
    if kinds != [NoneType] and type(value) not in kinds and not (type(value) is int and float in kinds):
        shown = f"'{path}' has {key}: {before}," if key in keys else f"{key} takes"
        names = " or ".join(NAMES.get(kind, kind.__name__) for kind in kinds)
        raise UserError(f"'{word}': {shown} {names}: give one of that kind")
    OmegaConf.update(config, key, value)


def _keys(config: DictConfig, prefix: str = "") -> list[str]:
    """Return the dotted names of all keys that are not sections."""
    found: list[str] = []
    for name, value in _items(config):
        found += _keys(value, f"{prefix}{name}.") if isinstance(value, DictConfig) else [f"{prefix}{name}"]
    return found


def _parameters(config: DictConfig, prefix: str = "") -> dict[str, object]:
    """Return parameters of the classes of the sections, except sections: dotted name -> annotation."""
    from qdiff.adapters.ldm.models import parameter_types

    found: dict[str, object] = {}
    for name, section in _items(config):
        if isinstance(section, DictConfig):
            given = section.get("params") or {}
            types = parameter_types(section.get("target"))
            simple = [key for key in types if not isinstance(given.get(key), DictConfig)]
            found |= {f"{prefix}{name}.params.{key}": types[key] for key in simple}
            found |= _parameters(section, f"{prefix}{name}.")
    return found


def _items(config: DictConfig) -> list[tuple[str, Any]]:
    return [(str(key), value) for key, value in config.items()]


def _kinds(annotation: object) -> list[type]:
    """Return the types that a parameter accepts, as they are in a configuration."""
    is_union = get_origin(annotation) in (Union, UnionType)  # Python 3.10 has two kinds
    alternatives = get_args(annotation) if is_union else (annotation,)
    return [CONTAINERS.get(get_origin(kind) or kind, kind) for kind in alternatives]
