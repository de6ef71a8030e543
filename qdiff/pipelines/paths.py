"""Paths among the arguments of the Python API."""

from pathlib import Path
from typing import Any


def as_path(name: str, value: Any) -> Path:
    """Convert an argument to a path. Raises TypeError, which names the argument, if it is not a string or a path."""
    try:
        return Path(value)
    except TypeError:
        raise TypeError(f"{name} must be a str or a Path, not {type(value).__name__}") from None
