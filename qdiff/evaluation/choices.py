"""What a user chose instead of what a table of published values states."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Choices:
    """What a user chose instead of what a table states.

    Attributes:
        arguments: other values of arguments.
        images: number of images per row; None takes that of the table.
        weights: full-precision weights; None takes those of the table.
        random: whether these are random.
        reference: what distributions are compared with; None takes that of the table.
        own_features: whether another feature network was given.
        calibrated: row -> calibrated checkpoint that is used as it is.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    images: int | None = None
    weights: Path | None = None
    random: bool = False
    reference: Path | None = None
    own_features: bool = False
    calibrated: Mapping[str, Path] = field(default_factory=dict)
