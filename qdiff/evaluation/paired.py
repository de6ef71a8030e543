"""Measures of single images: the distance to the full-precision image of the same seed, and whether the class shows."""

from collections.abc import Callable

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
    ".4f",
    by="torchmetrics",
)
RECOGNISED = Metric(
    "recognised",
    "category recognised",
    "",
    "share of the images whose category a classifier of such images predicts",
    ".0%",
)


class MeanOver(Measure):
    """The mean over images of a distance to their full-precision images.

    Args:
        metric: the column.
        distance: (images, full-precision images), each uint8 (B, C, H, W) -> the distance of each pair, (B,).
    """

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
        network: a classifier whose categories have the names of the images' classes.
    """

    metrics = (RECOGNISED,)

    def __init__(self, network: FeatureNetwork):
        self._network, self._categories = network, network.identity.categories
        self._right, self._count = 0, 0

    def update(self, batch: Batch) -> None:
        assert batch.labels is not None
        named = [self._categories[i] for i in batch.features(self._network).logits.argmax(1).tolist()]
        self._right += sum(name == label for name, label in zip(named, batch.labels, strict=True))
        self._count += len(batch.images)

    def compute(self) -> tuple[float]:
        return (self._right / self._count,)
