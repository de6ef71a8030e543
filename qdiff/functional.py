"""The mathematics of affine quantization: rounding, fake quantization, range search, losses. No state, no modules."""

from collections.abc import Callable

import torch
from torch import Tensor

MIN_DELTA = 1e-8
SEARCH_VALUES = 2**16  # values per row that the error of a candidate is averaged over
MSE_CANDIDATES = 80  # shrunk ranges that the error search tries, 1 % apart
SEARCH_P = 2.4  # exponent of the search error and of the step-size loss (Nagel et al. 2021; Q-Diffusion)


class _RoundSTE(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, grad):
        return grad


def round_ste(x: Tensor) -> Tensor:
    """Round half to even; the gradient passes straight through (Bengio et al. 2013)."""
    return _RoundSTE.apply(x)


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32 unless it is wider: half precision cannot tell the codes of 8 bits apart, nor hold those of 16."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def fake_quantize(x: Tensor, delta: Tensor, zero_point: Tensor, lo: int, hi: int) -> Tensor:
    """(clamp(round(x / delta) + zero_point, lo, hi) - zero_point) * delta; differentiable in `x` and `delta`.

    Args:
        x: any float tensor.
        delta: step size, > 0, broadcastable to `x`.
        zero_point: integers stored as float, broadcastable to `x`.
        lo, hi: smallest and largest code.

    Returns:
        the shape and dtype of `x`. Gradients are those of LSQ (Esser et al. 2020, equation 3): to `x` 1 where it is
        not clipped and 0 elsewhere; to `delta` round(x / delta) - x / delta, and the bound where clipped.
    """
    low, high = lo - zero_point, hi - zero_point
    scaled = at_least_float32(x) / delta
    if torch.is_grad_enabled() and scaled.requires_grad:
        rounded = round_ste(scaled)
        clipped = rounded.detach().clamp(low, high)
        # The gradient of clamp at the ends of its range is 0, 1/2 or 1, by version of torch and type of bound.
        return (torch.where(rounded == clipped, rounded, clipped) * delta).to(x.dtype)
    # One buffer and one bound at a time, because this is on the sampling path and clamp with two tensors is slow.
    return scaled.round_().clamp_min_(low).clamp_max_(high).mul_(delta).to(x.dtype)


def code_bounds(bits: int, symmetric: bool) -> tuple[int, int]:
    """Smallest and largest code: 0..2^b - 1, or -2^(b-1)..2^(b-1) - 1 when symmetric."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)


def lp_loss(pred: Tensor, target: Tensor, p: float = 2.0) -> Tensor:
    """|pred - target|^p summed over channels (dimension 1) and averaged over the rest (BRECQ, equation 10); scalar."""
    return (pred - target).abs().pow(p).sum(1).mean()


Range = tuple[Tensor, Tensor]  # delta, zero_point


def _min_max(rows: Tensor) -> tuple[Tensor, Tensor]:
    return rows.amin(1), rows.amax(1)


def affine(low: Tensor, high: Tensor, bits: int, symmetric: bool, zero_low: Tensor | None = None) -> Range:
    """Step size and zero point of the range low..high.

    Args:
        low, high: ends of the range, any equal shape.
        bits: b.
        symmetric: cover max(|low|, |high|) on both sides with zero point 0.
        zero_low: the low end that the zero point is taken from, where it is another one.

    Returns:
        delta >= 1e-8 and zero_point (integers, float dtype), shaped like `low`.
    """
    if symmetric:
        delta = torch.maximum(low.abs(), high.abs()) / code_bounds(bits, True)[1]
        return delta.clamp(min=MIN_DELTA), torch.zeros_like(delta)
    delta = ((high - low) / (2**bits - 1)).clamp(min=MIN_DELTA)
    return delta, (-(low if zero_low is None else zero_low) / delta).round()


def range_minmax(rows: Tensor, bits: int, symmetric: bool, always_zero: bool) -> Range:
    """The smallest range that holds every value and zero."""
    low, high = _min_max(rows)
    low = torch.zeros_like(low) if always_zero else low.clamp(max=0)
    return affine(low, high.clamp(min=0), bits, symmetric)


def range_max(rows: Tensor, bits: int, symmetric: bool, always_zero: bool) -> Range:
    """As published: the step from the raw range, the zero point from the range with zero."""
    low, high = _min_max(rows)
    if always_zero:
        return affine(torch.zeros_like(low), high, bits, symmetric)
    return affine(low, high, bits, symmetric, zero_low=low.clamp(max=0))


def range_max_scale(rows: Tensor, bits: int, symmetric: bool, always_zero: bool) -> Range:
    """`max` with the ends that the zero point and the symmetric step come from shrunk by (b + 2) / 8, as published."""
    low, high = _min_max(rows)
    shrink = (bits + 2) / 8
    if symmetric:
        return affine(low.clamp(max=0) * shrink, high.clamp(min=0) * shrink, bits, True)
    if always_zero:
        return affine(torch.zeros_like(low), high, bits, False)
    return affine(low, high, bits, False, zero_low=low.clamp(max=0) * shrink)


def range_mse(rows: Tensor, bits: int, symmetric: bool, always_zero: bool) -> Range:
    """Of 80 ranges, each 1 % narrower than the last, the one with the least mean |x - q(x)|^2.4.

    The ends come from all values; the error from at most 2^16 of each row, evenly spaced.
    """
    low, high = _min_max(rows)
    rows = rows[:, :: -(-rows.shape[1] // SEARCH_VALUES) | 1]  # odd, or a picture gives pixels of its edge alone
    if always_zero:
        low = torch.zeros_like(low)
    lo, hi = code_bounds(bits, symmetric)
    best_error = torch.full_like(low, torch.inf)
    best_delta = best_zero = torch.full_like(low, torch.nan)  # stays where the values are not finite
    for i in range(MSE_CANDIDATES):
        shrink = 1.0 - i * 0.01
        delta, zero_point = affine(low * shrink, high * shrink, bits, symmetric)
        rounded = fake_quantize(rows, delta[:, None], zero_point[:, None], lo, hi)
        error = rounded.sub_(rows).abs_().pow_(SEARCH_P).mean(1)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_delta, best_zero = torch.where(better, delta, best_delta), torch.where(better, zero_point, best_zero)
    return best_delta, best_zero


RANGE_SEARCH: dict[str, Callable[[Tensor, int, bool, bool], Range]] = {
    "mse": range_mse,
    "minmax": range_minmax,
    "max": range_max,
    "max_scale": range_max_scale,
}
