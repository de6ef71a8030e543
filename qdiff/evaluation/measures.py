"""Measures: what is computed from images that come in batches, and the columns of a table that it fills."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
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
        show: a finite value -> text.
        by: package that computes it; empty for this one.
        least: images that it needs to mean what its name says.
        plain: key and name below that number; None if it has no other.
        counted: whether the value depends on the number of images, so that the name tells it below `STANDARD_COUNT`.
    """

    key: str
    name: str
    unit: str
    meaning: str
    show: Callable[[float], str] = "{:.2f}".format
    by: str = ""
    least: int = 1
    plain: tuple[str, str] | None = None
    counted: bool = False

    @property
    def title(self) -> str:
        """Name and unit."""
        return f"{self.name} [{self.unit}]" if self.unit else self.name

    def of(self, count: int) -> Self:
        """Return the metric as it is called for this number of images."""
        key, name = self.plain if self.plain and count < self.least else (self.key, self.name)
        return replace(self, key=key, name=f"{name}, {count:,} images" if self._tells(count) else name)

    def _tells(self, count: int) -> bool:
        return count < (STANDARD_COUNT if self.counted else self.least)

    def cell(self, value: float | None) -> str:
        """Return the text of a value in a table."""
        if value is None:
            return "-"
        return "∞" if math.isinf(value) else self.show(value)


@dataclass(frozen=True, eq=False)
class Batch:
    """B images of one method, and what is known about each.

    Attributes:
        images: uint8, (B, 1 or 3, H, W).
        full_precision: full-precision images of the same seeds, uint8, (B, 1 or 3, H, W); None if there are none.
        labels: class indices of the images, int64, (B,); None for a model without classes.
        prompts: B texts; None for a model without prompts.
    """

    images: Tensor
    full_precision: Tensor | None = None
    labels: Tensor | None = None
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
        needs: fields of `Batch` that must not be None.
        fewest: images without which nothing can be computed at all.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    fewest: ClassVar[int] = 1
    metrics: tuple[Metric, ...]

    @abstractmethod
    def update(self, batch: Batch) -> None:
        """Add a batch."""

    @abstractmethod
    def compute(self) -> tuple[float, ...]:
        """Return the values of `metrics` for all batches so far, of at least `fewest` images."""

    def applies(self, batch: Batch) -> bool:
        """Return whether the batch has what is needed."""
        return all(getattr(batch, name) is not None for name in self.needs)


def measured(measures: Sequence[Measure], batches: Iterable[Batch]) -> dict[str, float | None]:
    """Compute measures of one method's images: key of a metric -> value, None where a measure does not apply.

    Args:
        measures: new ones.
        batches: at least one; what the first one lacks, all lack.
    """
    applicable: list[Measure] | None = None
    for batch in batches:
        if applicable is None:
            applicable = [measure for measure in measures if measure.applies(batch)]
        for measure in applicable:
            measure.update(batch)
    values: dict[str, float | None] = {metric.key: None for measure in measures for metric in measure.metrics}
    for measure in applicable or ():
        values.update(zip((metric.key for metric in measure.metrics), measure.compute()))
    return values
