"""The mathematics of affine quantization: fake quantization, losses. No state, no modules."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LOSS_P = 2.4  # exponent of the step-size loss, and of the error in the search for ranges (Nagel et al. 2021)


def at_least_float32(x: Tensor) -> Tensor:
    """Convert `x`, of any shape, to float32 unless it is wider: half precision cannot resolve 8-bit codes."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _FakeQuantize(torch.autograd.Function):
    """Values and gradients of `fake_quantize`, in half of the passes over the tensor that autograd would take."""

    @staticmethod
    def forward(ctx, x, delta, low, high):
        scaled = at_least_float32(x) / delta
        rounded = scaled.round()
        codes = rounded.clamp_min(low).clamp_max_(high)
        inside = rounded.eq_(codes)  # in floating point, because products with bool tensors are slow on a CPU
        ctx.save_for_backward(inside, torch.addcmul(codes, scaled, inside, value=-1, out=scaled))
        ctx.delta_shape = delta.shape
        return codes.mul_(delta).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        inside, slope = ctx.saved_tensors
        to_x = grad * inside if ctx.needs_input_grad[0] else None
        to_delta = (grad * slope).sum_to_size(ctx.delta_shape) if ctx.needs_input_grad[1] else None
        return to_x, to_delta, None, None


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
    if torch.is_grad_enabled() and (x.requires_grad or delta.requires_grad):
        return _FakeQuantize.apply(x, delta, low, high)
    # One buffer and one bound at a time, because this is on the sampling path and clamp with two tensors is slow.
    scaled = at_least_float32(x) / delta
    return scaled.round_().clamp_min_(low).clamp_max_(high).mul_(delta).to(x.dtype)


def relative_squared_error(found: Tensor, wanted: Tensor) -> float:
    """Return |found - wanted|^2 / |wanted|^2, tensors of the same shape; nan or infinite if `wanted` is zero."""
    wanted = at_least_float32(wanted)
    return ((at_least_float32(found) - wanted).square().sum() / wanted.square().sum()).item()


def code_bounds(bits: int, symmetric: bool) -> tuple[int, int]:
    """Return the smallest and the largest code: 0 and 2^b - 1, or -2^(b-1) and 2^(b-1) - 1 if symmetric."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)


class _MeanPower(torch.autograd.Function):
    """Value and gradient of `mean_power`, both from one power."""

    @staticmethod
    def forward(ctx, x, p):
        size = x.abs()
        power = _power(size, p - 1)
        ctx.p = p
        ctx.save_for_backward(x.sgn().mul_(power))
        return power.mul_(size).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (slope,) = ctx.saved_tensors
        return slope * (grad * ctx.p / slope.numel()), None


def _power(x: Tensor, exponent: float) -> Tensor:
    """Compute x^exponent for x >= 0, exponent >= 0; on a CPU in a third of the time that `pow` takes."""
    if exponent in (0, 1):
        return x.clone() if exponent else torch.ones_like(x)
    return x.log().mul_(exponent).exp_()


def mean_power(x: Tensor, p: float) -> Tensor:
    """Compute the mean of |x|^p, p >= 1, over all elements of `x`; scalar, differentiable in `x`."""
    return _MeanPower.apply(x, p)


def lp_loss(pred: Tensor, target: Tensor, p: float = 2.0) -> Tensor:
    """Compute |pred - target|^p, summed over dimension 1 and averaged over the others (BRECQ, equation 10); scalar."""
    return mean_power(pred - target, p) * pred.shape[1]
