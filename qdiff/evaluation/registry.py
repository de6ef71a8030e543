"""Metrics as table entries: what each is called, what it means and how it is computed from images."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from qdiff.evaluation.metrics import Statistics, frechet_distance, mean_absolute_error, psnr, statistics


@dataclass(frozen=True)
class Samples:
    """Images of one method, in memory; `qdiff.files.images.read_images` reads those of a folder.

    Attributes:
        images: uint8, (N, C, H, W).
        reference: full-precision images of the same seeds, uint8, (N, C, H, W); None if there are none.
        labels: class indices of the images, int64, (N,); None for a model without classes.
    """

    images: Tensor
    reference: Tensor | None = None
    labels: Tensor | None = None


@dataclass(frozen=True)
class Metric:
    """An entry of a comparison.

    Attributes:
        key: name in `results.json`.
        name: title of its column.
        unit: shown after the name; empty for a number without one.
        meaning: one sentence without a full stop.
        compute: images -> the value; None if the metric does not apply to them.
        show: a finite value -> text.
    """

    key: str
    name: str
    unit: str
    meaning: str
    compute: Callable[[Samples], float | None]
    show: Callable[[float], str] = "{:.2f}".format

    @property
    def title(self) -> str:
        """Name and unit."""
        return f"{self.name} [{self.unit}]" if self.unit else self.name

    def cell(self, value: float | None) -> str:
        """Return the text of a value in a table."""
        if value is None:
            return "-"
        return "∞" if math.isinf(value) else self.show(value)


class FeatureNetwork(Protocol):
    """A network whose features a Frechet distance compares.

    Attributes:
        frechet_name: title of the column with that distance, such as "FID" for the Inception network of FID.
        frechet_meaning: what the distance compares; a sentence without a full stop.
    """

    frechet_name: str
    frechet_meaning: str

    def features(self, images: Tensor) -> Tensor:
        """Return the features of images (N, C, H, W), uint8, as float64 of shape (N, D)."""


class Classifier(Protocol):
    """A network that names the class of an image."""

    def recognised(self, images: Tensor, labels: Tensor) -> float:
        """Return the share, 0..1, of images (N, C, H, W), uint8, whose class in `labels`, (N,), it predicts."""


def _distance_to_reference(distance: Callable[[Tensor, Tensor], float]) -> Callable[[Samples], float | None]:
    return lambda samples: None if samples.reference is None else distance(samples.images, samples.reference)


PSNR = Metric(
    "psnr",
    "PSNR to FP",
    "dB",
    "peak signal-to-noise ratio to the FP image of the same seed, averaged over the images; higher is closer",
    _distance_to_reference(psnr),
)
MAE = Metric(
    "mae",
    "distance to FP",
    "",
    "mean absolute error against the FP image of the same seed, on a scale of 0 to 255; lower is closer",
    _distance_to_reference(mean_absolute_error),
)


def frechet(network: FeatureNetwork, training: Statistics) -> Metric:
    """Return the Frechet distance to the training images; `training` are the statistics of their features."""
    return Metric(
        "frechet",
        network.frechet_name,
        "",
        network.frechet_meaning,
        lambda samples: frechet_distance(statistics(network.features(samples.images)), training),
    )


def recognised(classifier: Classifier) -> Metric:
    """Return the share of images whose class the classifier predicts; it applies to images with labels."""
    return Metric(
        "recognised",
        "category recognised",
        "",
        "share of the images whose category a classifier of such images predicts",
        lambda samples: None if samples.labels is None else classifier.recognised(samples.images, samples.labels),
        "{:.0%}".format,
    )


def evaluate(metrics: Iterable[Metric], samples: Samples) -> dict[str, float | None]:
    """Compute metrics of one method's images: key -> value, None where a metric does not apply."""
    return {metric.key: metric.compute(samples) for metric in metrics}
