"""Distances between sets of images: pixel by pixel, or as distributions. Pure functions on tensors."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

LEVELS = 255


class Statistics(NamedTuple):
    """A Gaussian fitted to feature vectors.

    Attributes:
        mu: mean, shape (D,), float64.
        sigma: covariance with divisor n - 1, shape (D, D), float64.
        n: number of vectors.
    """

    mu: Tensor
    sigma: Tensor
    n: int


def psnr(images: Tensor, reference: Tensor) -> float:
    """Compute the peak signal-to-noise ratio: 10 log10(255^2 / mean squared error) per image, averaged over images.

    Args:
        images, reference: (N, C, H, W), uint8; image i is compared with reference i.

    Returns:
        dB, at least 0; infinite if an image equals its reference.

    Raises:
        ValueError: another shape or dtype, different shapes, or no images.
    """
    squared = _difference(images, reference).square().flatten(1).mean(1)
    return (10 * torch.log10(LEVELS**2 / squared)).mean().item()


def mean_absolute_error(images: Tensor, reference: Tensor) -> float:
    """Compute the mean of |image - reference| over all images, channels and pixels.

    Args:
        images, reference: as for `psnr`.

    Returns:
        0..255.

    Raises:
        ValueError: as `psnr`.
    """
    return _difference(images, reference).abs().mean().item()


def statistics(features: Tensor) -> Statistics:
    """Fit a Gaussian to feature vectors.

    Args:
        features: (N, D), any floating-point dtype, on the CPU; N >= 2.

    Raises:
        ValueError: fewer than two vectors.
    """
    if len(features) < 2:
        raise ValueError(f"a covariance needs at least 2 feature vectors, not {len(features)}")
    x = features.double()
    return Statistics(x.mean(0), torch.from_numpy(np.cov(x.numpy(), rowvar=False).reshape(x.shape[1], -1)), len(x))


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
