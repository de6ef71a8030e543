"""Measures: what is computed from images that come in batches, and the columns of a table that it fills."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import Tensor
from typing_extensions import Self

from qdiff.evaluation.feature_network import FeatureNetwork, Features

STANDARD_COUNT = 50_000  # images of published FID, IS and the like


@dataclass(frozen=True)
class Metric:
    """A column of a table.

    Attributes:
        key: name in `results.json`.
        name: title of its column.
        unit: shown after the name; empty for a number without one.
        meaning: one sentence without a full stop.
        spec: format of a value in a table.
        by: package that computes it; empty for this one.
        least: images that it needs to mean what its name says.
        plain: key and name below that number; None if it has no other.
        counted: whether the value depends on the number of images, so that the name tells it below `STANDARD_COUNT`.
    """

    key: str
    name: str
    unit: str
    meaning: str
    spec: str = ".2f"
    by: str = ""
    least: int = 1
    plain: tuple[str, str] | None = None
    counted: bool = False

    def of(self, count: int) -> Self:
        """Return the metric as it is called for this number of images."""
        key, name = self.plain if self.plain and count < self.least else (self.key, self.name)
        return replace(self, key=key, name=f"{name}, {count:,} images" if self._tells(count) else name)

    def _tells(self, count: int) -> bool:
        return count < (STANDARD_COUNT if self.counted else self.least)


@dataclass(frozen=True, eq=False)
class Batch:
    """B images of one method, and what is known about each.

    Attributes:
        images: uint8, (B, 1 or 3, H, W).
        full_precision: full-precision images of the same seeds, uint8, (B, 1 or 3, H, W); None if there are none.
        labels: names of the images' classes, B; None for images without classes.
        prompts: B texts; None for a model without prompts.
    """

    images: Tensor
    full_precision: Tensor | None = None
    labels: Sequence[str] | None = None
    prompts: Sequence[str] | None = None
    _features: dict[int, Features] = field(default_factory=dict, repr=False)

    def features(self, network: FeatureNetwork) -> Features:
        """Return the features of the images, which are computed once for all measures; grey is shown as RGB."""
        if id(network) not in self._features:
            self._features[id(network)] = network.extract(self.images.expand(-1, 3, -1, -1))
        return self._features[id(network)]


class Measure(ABC):
    """A computation over batches, which fills one or several columns; each object serves one set of images.

    Attributes:
        metrics: its columns.

    Class attributes:
        fewest: images without which nothing can be computed at all.
    """

    fewest: ClassVar[int] = 1
    metrics: tuple[Metric, ...]

    @abstractmethod
    def update(self, batch: Batch) -> None:
        """Add a batch."""

    @abstractmethod
    def compute(self) -> tuple[float, ...]:
        """Return the values of `metrics` for all batches so far, of at least `fewest` images."""
