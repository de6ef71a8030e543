"""The mathematics of affine quantization: rounding, fake quantization, losses. No state, no modules."""

import torch
from torch import Tensor

LOSS_P = 2.4  # exponent of the step-size loss, and of the error in the search for ranges (Nagel et al. 2021)


class _RoundSTE(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, grad):
        return grad


def round_ste(x: Tensor) -> Tensor:
    """Round half to even, same shape; the gradient passes straight through (Bengio et al. 2013)."""
    return _RoundSTE.apply(x)


def at_least_float32(x: Tensor) -> Tensor:
    """Convert `x`, of any shape, to float32 unless it is wider: half precision cannot resolve 8-bit codes."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def fake_quantize(x: Tensor, delta: Tensor, zero_point: Tensor, lo: int, hi: int) -> Tensor:
    """Compute (clamp(round(x / delta) + zero_point, lo, hi) - zero_point) * delta, differentiable in `x` and `delta`.

    Args:
        x: any float tensor.
        delta: step size, > 0, broadcastable to `x`.
        zero_point: integers stored as float, broadcastable to `x`.
        lo, hi: smallest and largest code.

    Returns:
        a tensor of the shape and dtype of `x`. Gradients are those of LSQ (Esser et al. 2020, equation 3): with respect
        to `x`, 1 where it is not clipped and 0 elsewhere; with respect to `delta`, round(x / delta) - x / delta where
        it is not clipped, and the bound less the zero point elsewhere.
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
    """Return the smallest and the largest code: 0 and 2^b - 1, or -2^(b-1) and 2^(b-1) - 1 if symmetric."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)


def lp_loss(pred: Tensor, target: Tensor, p: float = 2.0) -> Tensor:
    """Compute |pred - target|^p, summed over dimension 1 and averaged over the others (BRECQ, equation 10); scalar."""
    return (pred - target).abs().pow(p).sum(1).mean()
