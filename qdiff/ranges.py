"""Searches ranges: step sizes and zero points from the extremes of a tensor's values, and from a part of them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from qdiff.functional import LOSS_P, code_bounds, fake_quantize

MIN_DELTA = 1e-8
SEARCH_VALUES = 2**16  # values per row that the error of a candidate is averaged over
MSE_CANDIDATES = 80  # shrunk ranges that the error search tries, 1 % apart
WEIGHTED_CANDIDATES = 60  # likewise of the weighted search

MARGIN = 1.2  # by which `margin` widens the extremes

Range = tuple[Tensor, Tensor]  # delta, zero_point, each (rows,)


class RowSummary(NamedTuple):
    """What a range search needs to know of each row.

    Args:
        low, high: (rows,), minimum and maximum of all values.
        values: (rows, at most 2^16), evenly spaced values.
    """

    low: Tensor
    high: Tensor
    values: Tensor


def _thin(rows: Tensor) -> Tensor:
    return rows[:, :: -(-rows.shape[1] // SEARCH_VALUES) | 1]  # odd: an even one may hit few columns


def summarize(rows: Tensor) -> RowSummary:
    """Summarize (rows, n) floats; the values are a view of them."""
    return RowSummary(rows.amin(1), rows.amax(1), _thin(rows))


def joined(parts: Sequence[RowSummary]) -> RowSummary:
    """Join the summaries of parts of the same rows, of about equal size, to one of all."""
    if len(parts) == 1:
        return parts[0]
    lows, highs, values = zip(*parts)
    return RowSummary(torch.stack(lows).amin(0), torch.stack(highs).amax(0), _thin(torch.cat(values, dim=1)))


def affine(low: Tensor, high: Tensor, bits: int, symmetric: bool, zero_low: Tensor | None = None) -> Range:
    """Compute step size and zero point of the range low..high.

    Args:
        low, high: ends of the range, floats of the same shape.
        bits: b, 2..16.
        symmetric: cover -m..m with zero point 0, where m = max(|low|, |high|).
        zero_low: take the zero point from this low end instead of `low`.

    Returns:
        delta >= 1e-8 and zero_point (integers in float dtype, 0..2^b - 1 only if the range contains zero), shaped like
        `low`.
    """
    if symmetric:
        delta = torch.maximum(low.abs(), high.abs()) / code_bounds(bits, True)[1]
        return delta.clamp(min=MIN_DELTA), torch.zeros_like(delta)
    delta = ((high - low) / (2**bits - 1)).clamp(min=MIN_DELTA)
    return delta, (-(low if zero_low is None else zero_low) / delta).round()


def range_minmax(summary: RowSummary, bits: int, symmetric: bool, always_zero: bool) -> Range:
    """Take the smallest range that contains every value and zero."""
    low, high, _ = summary
    low = torch.zeros_like(low) if always_zero else low.clamp(max=0)
    return affine(low, high.clamp(min=0), bits, symmetric)


def range_margin(summary: RowSummary, bits: int, symmetric: bool, always_zero: bool) -> Range:
    """Take the range of `minmax` and 20 % more at both ends, because other data exceed the extremes of these.

    The largest activations matter most, so at 8 bits clipping them costs more than coarser steps. Attention after its
    softmax, `always_zero`, has no margin.
    """
    low, high, values = summary
    margin = 1.0 if always_zero else MARGIN
    return range_minmax(RowSummary(low * margin, high * margin, values), bits, symmetric, always_zero)


def range_max(summary: RowSummary, bits: int, symmetric: bool, always_zero: bool) -> Range:
    """As in the published code: the step size from the raw range, the zero point from the range that contains zero."""
    low, high, _ = summary
    if always_zero:
        return affine(torch.zeros_like(low), high, bits, symmetric)
    return affine(low, high, bits, symmetric, zero_low=low.clamp(max=0))


def range_max_scale(summary: RowSummary, bits: int, symmetric: bool, always_zero: bool) -> Range:
    """As in the published code: `max`, where zero point and symmetric step size see the ends times (b + 2) / 8."""
    low, high, _ = summary
    shrink = (bits + 2) / 8
    if symmetric:
        return affine(low.clamp(max=0) * shrink, high.clamp(min=0) * shrink, bits, True)
    if always_zero:
        return affine(torch.zeros_like(low), high, bits, False)
    return affine(low, high, bits, False, zero_low=low.clamp(max=0) * shrink)


def range_mse(summary: RowSummary, bits: int, symmetric: bool, always_zero: bool) -> Range:
    """Take the one of 80 ranges, each 1 % narrower than the last, with the least mean |x - q(x)|^2.4.

    The ends come from all values, the error from those in the summary.
    """
    low, high, values = summary
    if always_zero:
        low = torch.zeros_like(low)

    def error(difference: Tensor) -> Tensor:
        return difference.abs_().pow_(LOSS_P).mean(1)

    return _least_error(low, high, values, bits, symmetric, MSE_CANDIDATES, error)


def range_weighted(rows: Tensor, weights: Tensor, bits: int, symmetric: bool) -> Range:
    """Take the one of 60 ranges, shrunk from the extremes and zero, with the least sum of weights * (x - q(x))^2.

    Args:
        rows: (rows, n).
        weights: >= 0, (n,).
        bits, symmetric: of the codes; zero points are codes.
    """
    low, high = rows.amin(1).clamp(max=0), rows.amax(1).clamp(min=0)
    candidates = WEIGHTED_CANDIDATES
    return _least_error(low, high, rows, bits, symmetric, candidates, lambda difference: difference.square_() @ weights)


def _least_error(
    low: Tensor,
    high: Tensor,
    values: Tensor,
    bits: int,
    symmetric: bool,
    candidates: int,
    error_of: Callable[[Tensor], Tensor],
) -> Range:
    """Take the one of so many ranges, each 1 % narrower than the last, with the least error.

    Args:
        low, high: ends of the first range, (rows,).
        values: (rows, n).
        bits, symmetric: of the codes.
        candidates: number of ranges.
        error_of: q(x) - x, (rows, n), which it may change, -> errors, (rows,).
    """
    lo, hi = code_bounds(bits, symmetric)
    best_error = torch.full_like(low, torch.inf)
    best_delta = best_zero = torch.full_like(low, torch.nan)  # stays where the values are not finite
    for i in range(candidates):
        shrink = 1.0 - i * 0.01
        delta, zero_point = affine(low * shrink, high * shrink, bits, symmetric)
        rounded = fake_quantize(values, delta[:, None], zero_point[:, None], lo, hi)
        error = error_of(rounded.sub_(values))
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_delta, best_zero = torch.where(better, delta, best_delta), torch.where(better, zero_point, best_zero)
    return best_delta, best_zero


# name in QuantSpec -> (summary, bits, symmetric, always_zero) -> delta and zero_point, each (rows,)
RANGE_SEARCH: dict[str, Callable[[RowSummary, int, bool, bool], Range]] = {
    "mse": range_mse,
    "minmax": range_minmax,
    "margin": range_margin,
    "max": range_max,
    "max_scale": range_max_scale,
}
