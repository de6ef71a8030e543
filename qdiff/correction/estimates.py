"""Estimates from moments of eps (x) and eps_q (y): mean error, slope on eps, deviation; (B, S, C, 8) -> (B, S)."""

import torch
from torch import Tensor

from qdiff.correction.moments import Moments


def affine(slope: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return scale and shift, (S, 1) and (S, C), of the corrected prediction (eps_q - bias) / (1 + slope).

    Args:
        slope, bias: of shape (S,) and (S, C).
    """
    scale = 1 / (1 + slope)[:, None]
    return scale, -bias * scale


def slope_of(means: Moments) -> tuple[Tensor, Tensor]:
    """Return the slope of the least-squares line of the error on eps, (S,), and the variance of eps, all channels."""
    m = means.over_channels()
    variance = m.xx - m.x**2
    covariance = m.xy - m.xx - m.x * (m.y - m.x)
    return torch.where(variance > 0, covariance / variance, 0), variance


def scores(m: Moments, means: Moments, k: Tensor) -> Tensor:
    """Return the mean of (eps - its mean) times the residual of the line with slope k, of each sample, (B, S).

    Divided by the variance of eps, it is the influence of the sample on the slope.
    """
    s, whole = m.over_channels(), means.over_channels()
    x, d = whole.x, whole.y - whole.x
    return (s.xy - s.xx) - x * (s.y - s.x) - s.x * d + x * d - k * (s.xx - 2 * s.x * x + x**2)


def deviations(m: Moments, k: Tensor) -> Tensor:
    """Return the standard deviation of eps_q - (1 + k) eps within each sample, (B, S)."""
    s, elements = m.over_channels(), m.pixels * m.values.shape[-2]
    scale = 1 + k
    variance = s.yy - 2 * scale * s.xy + scale**2 * s.xx - (s.y - scale * s.x) ** 2
    return (variance * elements / max(1, elements - 1)).clamp(min=0).sqrt()
