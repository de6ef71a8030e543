"""`results.json`: an `Evaluation` as strict JSON with a version, and its checked reader."""

import json
import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from qdiff.errors import UserError
from qdiff.evaluation.record import Evaluation
from qdiff.files.atomic import replacing
from qdiff.files.json_file import read_json

FORMAT, VERSION = "qdiff evaluation", 2
LARGE = 10**300  # whole numbers that are read as floating-point ones
READ = (1, VERSION)  # version 1 did not know the model
KIND, REMEDY = "a results file of python -m qdiff evaluate", "evaluate the images again"


def to_json(evaluation: Evaluation) -> str:
    """Return an evaluation as JSON: `format`, `version` and the fields of `Evaluation`."""
    content = {"format": FORMAT, "version": VERSION, **asdict(evaluation)}
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_evaluation(path: Path, evaluation: Evaluation) -> None:
    """Write an evaluation, whole or not at all. Raises OSError if the file cannot be written."""
    with replacing(path) as partial:
        partial.write_text(to_json(evaluation), encoding="utf-8")


def read_evaluation(path: Path) -> Evaluation:
    """Read what `write_evaluation` wrote.

    Raises:
        UserError: the file is missing, damaged, of another kind or version, or a field is missing or wrong.
    """
    content = read_json(path, f"give {KIND}")
    if not is_evaluation(content):
        raise UserError(f"'{path}' is not {KIND}: {REMEDY}")
    return evaluation_of(path, content)


def is_evaluation(content: object) -> bool:
    """Return whether the content of a JSON file claims to be an evaluation, of any version."""
    return isinstance(content, dict) and content.get("format") == FORMAT


def evaluation_of(path: Path, content: Mapping[str, Any]) -> Evaluation:
    """Return the evaluation that a JSON file holds.

    Args:
        path: the file, for error messages.
        content: of the file; `is_evaluation`.

    Raises:
        UserError: the version is another one, or a field is missing or wrong.
    """
    if type(content.get("version")) is not int or content["version"] not in READ:
        known = " and ".join(map(str, READ))
        raise UserError(f"'{path}' has version {content.get('version')!r}, this program reads {known}: {REMEDY}")
    try:
        return parsed(Evaluation, {key: value for key, value in content.items() if key not in ("format", "version")})
    except ValueError as e:
        raise UserError(f"'{path}' is damaged ({e}): {REMEDY}") from e


def parsed(kind: Any, value: Any, place: str = "file") -> Any:
    """Convert plain JSON to a type: dataclasses, unions, tuples, mappings and simple types.

    Raises:
        ValueError: the value is of another type; it names the place.
    """
    if is_dataclass(kind):
        return _fields(kind, value, place)
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):  # only X | None occurs
        return None if value is None else parsed(inner[0], value, place)
    if origin is tuple and isinstance(value, list):
        return tuple(parsed(inner[0], x, f"{place}[{i}]") for i, x in enumerate(value))
    if origin is Mapping and isinstance(value, dict):
        return {key: parsed(inner[1], x, f"{place}.{key}") for key, x in value.items()}
    if kind is float and type(value) is int and abs(value) < LARGE:
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise ValueError(f"{place} is {value!r}, not {getattr(origin or kind, '__name__', kind)}")
    return value


def _fields(kind: Any, value: Any, place: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{place} is {value!r}, not a section")
    hints = get_type_hints(kind)
    if unknown := value.keys() - hints.keys():
        raise ValueError(f"{place}.{min(unknown)} is unknown")
    required = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
    if missing := required - value.keys():
        raise ValueError(f"{place}.{min(missing)} is missing")
    return kind(**{key: parsed(hints[key], x, f"{place}.{key}") for key, x in value.items()})
