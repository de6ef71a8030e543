"""Distances between sets of images: pixel by pixel, or as distributions. Pure functions on tensors."""

from typing import NamedTuple

import torch
from torch import Tensor

LEVELS = 255
SSIM_WINDOW = 11  # pixels


class Statistics(NamedTuple):
    """A Gaussian fitted to feature vectors.

    Attributes:
        mu: mean, shape (D,), float64.
        sigma: covariance with divisor n - 1, shape (D, D), float64.
        n: number of vectors; None if it is not known.
    """

    mu: Tensor
    sigma: Tensor
    n: int | None


class Moments:
    """Mean and covariance of feature vectors that come in batches, in one pass and in float64.

    Batches are merged by the update of Chan, Golub and LeVeque 1979, which does not lose digits as sums of squares do.
    """

    def __init__(self) -> None:
        self.n = 0
        self._mu, self._scatter = torch.zeros(1), torch.zeros(1, 1)

    def update(self, x: Tensor) -> None:
        """Add vectors, (B, D) with B >= 1, of any floating-point dtype, on the CPU; D is the same in all calls."""
        x = x.double()
        n, mu = len(x), x.mean(0)
        scatter = (x - mu).T @ (x - mu)
        if self.n:
            difference = mu - self._mu
            scatter += self._scatter + torch.outer(difference, difference) * (self.n * n / (self.n + n))
            mu = self._mu + difference * (n / (self.n + n))
        self.n, self._mu, self._scatter = self.n + n, mu, scatter

    def statistics(self) -> Statistics:
        """Return the Gaussian of the vectors so far. Raises ValueError for fewer than two."""
        if self.n < 2:
            raise ValueError(f"a covariance needs at least 2 feature vectors, not {self.n}")
        return Statistics(self._mu, self._scatter / (self.n - 1), self.n)


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Compute the peak signal-to-noise ratio of each image: 10 log10(255^2 / mean squared error).

    Args:
        images, reference: (N, C, H, W), uint8; image i is compared with reference i.

    Returns:
        dB, (N,), float64, at least 0; infinite for an image that equals its reference.

    Raises:
        ValueError: another shape or dtype, different shapes, or no images.
    """
    squared = _difference(images, reference).square().flatten(1).mean(1)
    return 10 * torch.log10(LEVELS**2 / squared)


def mean_absolute_error(images: Tensor, reference: Tensor) -> Tensor:
    """Compute the mean of |image - reference| over the channels and pixels of each image.

    Args:
        images, reference: as for `psnr`.

    Returns:
        0..255, (N,), float64.

    Raises:
        ValueError: as `psnr`.
    """
    return _difference(images, reference).abs().flatten(1).mean(1)


def structural_similarity(images: Tensor, reference: Tensor) -> Tensor:
    """Compute SSIM of each image (Wang et al. 2004), averaged over channels, by torchmetrics.

    The window is a Gaussian of 11 x 11 pixels with standard deviation 1.5; K1 = 0.01, K2 = 0.03, range 0..255. The mean
    is over the places where the window fits into the image; torchmetrics itself also counts reflected borders.

    Args:
        images, reference: as for `psnr`, at least `SSIM_WINDOW` pixels high and wide.

    Returns:
        -1..1, (N,), float64; 1 for an image that equals its reference.

    Raises:
        ValueError: as `psnr`, or the images are too small.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    _difference(images, reference)
    if min(images.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs images of at least {SSIM_WINDOW} x {SSIM_WINDOW} pixels")
    pair = images.double(), reference.double()
    _, everywhere = structural_similarity_index_measure(
        *pair, data_range=float(LEVELS), reduction="none", return_full_image=True
    )
    border = SSIM_WINDOW // 2
    return everywhere[..., border:-border, border:-border].flatten(1).mean(1)


def statistics(features: Tensor) -> Statistics:
    """Fit a Gaussian to feature vectors.

    Args:
        features: (N, D), any floating-point dtype, on the CPU; N >= 2.

    Raises:
        ValueError: fewer than two vectors.
    """
    moments = Moments()
    if len(features):
        moments.update(features)
    return moments.statistics()


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """Compute |mu_a - mu_b|^2 + tr(sigma_a + sigma_b - 2 (sigma_a sigma_b)^(1/2)).

    See equation 6 of Heusel et al. 2017 (arXiv 1706.08500). Its unit is that of the squared features, so only values
    for the same features are comparable. It is biased upwards by about 1 / n: compare only sets of equal size.

    Returns:
        at least 0, up to rounding errors.
    """
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    first, second = ({"mu": s.mu.numpy(), "sigma": s.sigma.numpy()} for s in (a, b))
    return fid_statistics_to_metric(first, second, verbose=False)[KEY_METRIC_FID]


def _difference(images: Tensor, reference: Tensor) -> Tensor:
    for x in (images, reference):
        if x.dtype != torch.uint8 or x.ndim != 4 or not len(x):
            raise ValueError(f"images must be uint8 of shape (N, C, H, W), not {x.dtype} of {tuple(x.shape)}")
    if images.shape != reference.shape:
        raise ValueError(f"shapes differ: {tuple(images.shape)} and {tuple(reference.shape)}")
    return images.double() - reference.double()
