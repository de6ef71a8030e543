"""YAML files, and their sections checked against dataclasses."""

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from qdiff.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def read_yaml(path: str | Path) -> DictConfig:
    """Read a YAML file with sections. Raises UserError if it cannot be read as one."""
    try:
        config = OmegaConf.load(path)
    except OSError as e:
        raise UserError(f"cannot read '{path}' ({e.strerror or e}): give --config the path of a YAML file") from e
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as e:
        raise UserError(f"'{path}' is not valid YAML ({one_line(e)}): correct it") from e
    if not isinstance(config, DictConfig):
        raise UserError(f"'{path}' has no sections: give the configuration of a model")
    return config


def check_references(config: DictConfig, path: str | Path) -> None:
    """Check that references to other values lead to one. Raises UserError, which names `path`, otherwise."""
    try:
        OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as e:
        raise UserError(f"'{path}' refers to a value that it lacks ({one_line(e)}): correct it") from e


def checked_section(
    config: DictConfig | None, name: str, schema: "type[DataclassInstance]", path: str | Path, remedy: str
) -> DictConfig:
    """Return a section with exactly the keys of a schema, converted to their types; other keys are left out.

    Args:
        config: the configuration, or a part of it; None if that part is missing.
        name: of the section; dotted when `config` is a part ("first_stage.optim"), whose last word is the key.
        schema: a dataclass of simple types and lists of them. A field without a default is required, and a whole
            number must be at least 1, or `metadata["minimum"]`.
        path: the file, for error messages.
        remedy: what to do if the section is missing.

    Raises:
        UserError: the section or a key is missing, or a value has another type or is too small.
    """
    given = config.get(name.rpartition(".")[2]) if isinstance(config, DictConfig) else None
    if not isinstance(given, DictConfig):
        raise UserError(f"'{path}' has no section '{name}': {remedy}")
    section = OmegaConf.structured(schema)
    for field in fields(schema):
        key = field.name
        if key not in given and OmegaConf.is_missing(section, key):
            raise UserError(f"'{path}' lacks {name}.{key}: add it")
        try:
            if key in given:
                OmegaConf.update(section, key, given[key], merge=False)
            value = section[key]
        except OmegaConfBaseException as e:
            raise UserError(f"'{path}': {name}.{key} is wrong ({one_line(e)}): correct it") from e
        minimum = field.metadata.get("minimum", 1)
        if isinstance(value, int) and not isinstance(value, bool) and value < minimum:
            raise UserError(f"'{path}': {name}.{key} is {value}: make it at least {minimum}")
    return section


def one_line(error: Exception) -> str:
    """Return an error's message in one line of at most 200 characters, without OmegaConf's details."""
    return " ".join(str(error).partition("full_key:")[0].split())[:200]
