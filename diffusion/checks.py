"""Checks of settings: numbers within a range."""

import math
import operator
from numbers import Real
from typing import Any


def whole(name: str, value: Any, low: int, high: int | None = None) -> int:
    """Return a whole number as an int, whatever type it has.

    Args:
        name: of the setting, for error messages.
        value: an integer of Python, NumPy or PyTorch.
        low, high: its smallest and largest value; no largest one if None.

    Raises:
        TypeError: not a whole number.
        ValueError: outside the range.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, not {value!r}") from None
    if number < low or (high is not None and number > high):
        raise ValueError(f"{name} must be {_range(low, high)}, not {value}")
    return number


def check_number(name: str, value: object, low: float, high: float | None = None) -> None:
    """Check a finite number; arguments and errors as for `whole`."""
    if not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, not {value!r}")
    if not low <= float(value) <= (math.inf if high is None else high) or math.isinf(value):
        raise ValueError(f"{name} must be {_range(low, high)}, not {value}")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Check that a setting is one of `choices`. Raises ValueError."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}")


def _range(low: float, high: float | None) -> str:
    return f"at least {low}" if high is None else f"in {low}..{high}"
