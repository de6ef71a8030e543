"""Measures that compare each image with the full-precision image of its seed, and each with its class."""

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor

from qdiff.evaluation.feature_network import FeatureNetwork
from qdiff.evaluation.measures import Batch, Measure, Metric
from qdiff.evaluation.metrics import mean_absolute_error, psnr, structural_similarity

PSNR = Metric(
    "psnr",
    "PSNR to FP",
    "dB",
    "peak signal-to-noise ratio to the FP image of the same seed, averaged over the images; higher is closer",
)
MAE = Metric(
    "mae",
    "distance to FP",
    "",
    "mean absolute error against the FP image of the same seed, on a scale of 0 to 255; lower is closer",
)
SSIM = Metric(
    "ssim",
    "SSIM to FP",
    "",
    "structural similarity to the FP image of the same seed, averaged over the images; 1 is equal",
    "{:.4f}".format,
    by="torchmetrics",
)
RECOGNISED = Metric(
    "recognised",
    "category recognised",
    "",
    "share of the images whose category a classifier of such images predicts",
    "{:.0%}".format,
)


class MeanOver(Measure):
    """The mean over images of a distance to their full-precision images.

    Args:
        metric: the column.
        distance: (images, full-precision images), each uint8 (B, C, H, W) -> the distance of each pair, (B,).
    """

    needs: ClassVar = ("full_precision",)

    def __init__(self, metric: Metric, distance: Callable[[Tensor, Tensor], Tensor]):
        self.metrics = (metric,)
        self._distance, self._sum, self._count = distance, 0.0, 0

    def update(self, batch: Batch) -> None:
        assert batch.full_precision is not None
        self._sum += self._distance(batch.images, batch.full_precision).double().sum().item()
        self._count += len(batch.images)

    def compute(self) -> tuple[float]:
        return (self._sum / self._count,)


def psnr_to_fp() -> MeanOver:
    """Return the measure of `metrics.psnr`."""
    return MeanOver(PSNR, psnr)


def distance_to_fp() -> MeanOver:
    """Return the measure of `metrics.mean_absolute_error`."""
    return MeanOver(MAE, mean_absolute_error)


def ssim_to_fp() -> MeanOver:
    """Return the measure of `metrics.structural_similarity`."""
    return MeanOver(SSIM, structural_similarity)


class Recognised(Measure):
    """The share of images whose class has the largest logit.

    Args:
        network: a classifier of such images.
    """

    needs: ClassVar = ("labels",)
    metrics = (RECOGNISED,)

    def __init__(self, network: FeatureNetwork):
        self._network, self._right, self._count = network, 0, 0

    def update(self, batch: Batch) -> None:
        assert batch.labels is not None
        self._right += int((batch.features(self._network).logits.argmax(1) == batch.labels).sum())
        self._count += len(batch.images)

    def compute(self) -> tuple[float]:
        return (self._right / self._count,)
