"""The paper's fit: both networks predict on the trajectories of full precision (PTQD, He et al. 2023, section 3.2)."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from qdiff.correction.moments import Mean, Moments, mean_of
from qdiff.correction.parts import NOT_ASKED, Part, choose, judged
from qdiff.correction.steps import StepFactors


@dataclass(frozen=True)
class Fitted:
    """What a fit found; see `qdiff.correction.table.CorrectionTable` for shapes."""

    slope: Tensor
    slope_error: Tensor
    bias: Tensor
    bias_error: Tensor
    std: Tensor
    std_error: Tensor
    parts: Mapping[str, Part]


def fit_predictions(
    fitted: Iterable[Moments], held_out: Iterable[Moments], asked: Collection[str], factors: StepFactors | None
) -> Fitted:
    """Fit the correlation, the bias and the deviation of the error of eps_q at each step.

    The slope is that of the least-squares line of the error on eps, over all channels; a negative one counts as 0. Bias
    is the mean error of a channel, `std` the mean over samples of the standard deviation of the error without its
    correlated part. Standard errors are over samples, as if the pixels of one were a single observation.

    Slope and bias help if they lower the squared error of the held-out predictions, relative to that of eps_q and
    averaged over the steps. Reducing the noise of the sampler helps if, with the error that remains, its variance is
    closer to the right one in three bands together (see `Moments.bands`): an error of large blobs does not replace the
    noise of pixels.

    Args:
        fitted, held_out: moments of eps (x) and eps_q (y) of some samples at a time, (B, S, C, 8); read several times.
        asked: the parts that may be used.
        factors: of the sampler; None if it is a multistep method, which adds no noise.
    """
    mean = mean_of(m.values for m in fitted)
    means = _like(fitted, mean.mean)
    k, u = _slope(means)
    bias, bias_error = means.y - means.x, mean_of(m.y - m.x for m in fitted).error
    held = _like(held_out, mean_of(m.values for m in held_out).mean)

    def corrected(parts: Collection[str]) -> tuple[Tensor, Tensor]:
        return _affine(k * ("slope" in parts), bias * ("bias" in parts))

    def gains(chosen: frozenset[str], name: str) -> tuple[Mean, float]:
        before, after = corrected(chosen), corrected(chosen | {name})
        whole = held.error(*corrected(()))
        scale = torch.where(whole > 0, 1 / whole, 0)
        return mean_of(((m.error(*before) - m.error(*after)) * scale).mean(1) for m in held_out), float(whole.sum() > 0)

    parts = dict(choose(asked, ("slope", "bias"), gains))
    used = k * parts["slope"].on
    std = mean_of(_deviation(m, used) for m in fitted)
    affine = _affine(used, bias * parts["bias"].on)
    parts["variance"] = _variance(held, held_out, affine, std.mean / (1 + used), factors, asked)
    slope_error = mean_of(_score(m, means, k) for m in fitted).error / torch.where(u > 0, u, torch.inf)
    slope, slope_error = (x[:, None].expand_as(bias).clone() for x in (k, slope_error))
    return Fitted(slope, slope_error, bias, bias_error, std.mean, std.error, parts)


def _like(chunks: Iterable[Moments], values: Tensor) -> Moments:
    return next(iter(chunks)).like(values)


def _affine(slope: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return scale and shift, (S, 1) and (S, C), of the corrected prediction (eps_q - bias) / (1 + slope)."""
    scale = 1 / (1 + slope)[:, None]
    return scale, -bias * scale


def _slope(means: Moments) -> tuple[Tensor, Tensor]:
    """Return the slope of the error on eps, (S,), >= 0, and the variance of eps."""
    m = means.over_channels()
    variance = m.xx - m.x**2
    covariance = m.xy - m.xx - m.x * (m.y - m.x)
    return torch.where(variance > 0, covariance / variance, 0).clamp(min=0), variance


def _score(m: Moments, means: Moments, k: Tensor) -> Tensor:
    """Return the mean of (eps - its mean) times the residual of the line, of each sample, (B, S)."""
    s, whole = m.over_channels(), means.over_channels()
    x, d = whole.x, whole.y - whole.x
    return (s.xy - s.xx) - x * (s.y - s.x) - s.x * d + x * d - k * (s.xx - 2 * s.x * x + x**2)


def _deviation(m: Moments, k: Tensor) -> Tensor:
    """Return the standard deviation of eps_q - (1 + k) eps within each sample, (B, S)."""
    s, elements = m.over_channels(), m.pixels * m.values.shape[-2]
    scale = 1 + k
    variance = s.yy - 2 * scale * s.xy + scale**2 * s.xx - (s.y - scale * s.x) ** 2
    return (variance * elements / max(1, elements - 1)).clamp(min=0).sqrt()


def _variance(
    held: Moments,
    held_out: Iterable[Moments],
    affine: tuple[Tensor, Tensor],
    s: Tensor,
    factors: StepFactors | None,
    asked: Collection[str],
) -> Part:
    """Decide whether the sampler should add less noise, where the error `s` of the corrected predictions remains."""
    if "variance" not in asked:
        return NOT_ASKED
    if factors is None or not (factors.sigma > 0).any():
        return Part(False, note="the sampler adds no noise that the error could take the place of")
    weight = torch.where(factors.sigma > 0, (factors.c / factors.sigma) ** 2, 0)  # in units of the sampler's noise
    taken = torch.minimum(s**2, torch.where(weight > 0, 1 / weight, 0))
    less = taken[:, None] * held.white  # noise that the sampler does not add
    sign = (held.bands(*affine) - less).sign()

    def gain(m: Moments) -> Tensor:
        bands = m.bands(*affine)
        return ((bands - sign * (bands - less)).sum(-1) * weight).mean(1)

    part = judged(mean_of(gain(m) for m in held_out), float((held.error(*affine) * weight).mean()))
    share = float((taken * weight).sum() / (weight > 0).sum())
    note = f"the error takes the place of {100 * share:.3g} % of the sampler's noise" if part.on else part.note
    return Part(part.on, part.gain, part.error, note)
