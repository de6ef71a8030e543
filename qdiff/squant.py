"""Rounds weights without data, so that errors cancel: SQuant (Guo et al. 2022, arXiv 2202.07471, algorithms 1 and 2).

The error of a weight is its code less the weight, in steps. Of the Hessian of the loss, SQuant keeps a part that is
diagonal, one that is constant within each kernel (the weights of one output and one input channel) and one that is
constant within each output channel. So not only the errors should be small, but also their sums over kernels and over
channels. Rounding to nearest (SQuant-E) bounds each error by 1/2; then weights are flipped to the code on their other
side until the sums are as small, first of kernels (SQuant-K), then of channels (SQuant-C):

    each |error| < 1, each |sum over a kernel| <= 1, each |sum over a channel| <= 1/2

wherever there is such a code. A kernel of one weight, in a linear layer or a 1 x 1 convolution, has no sum of its own
to correct, so only SQuant-C changes it. The step sizes are those of rounding to nearest.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from qdiff.functional import at_least_float32
from qdiff.quant_layer import Quantizer, QuantModule, UniformAffineQuantizer


def round_layers(layers: Iterable[QuantModule]) -> None:
    """Replace the codes of layers by those of `squant`. Raises ValueError for a layer without full-precision weight."""
    for layer in layers:
        layer.set_codes(squant(layer.fp_weight.detach(), layer.weight_quantizer))


def squant(weight: Tensor, quantizer: Quantizer) -> Tensor:
    """Return the offset codes of a weight by SQuant, int32 in its shape.

    Errors in steps of different sizes do not cancel, so each slice of a split layer is rounded as a layer by itself.

    Args:
        weight: (O, C) or (O, C, ...), float.
        quantizer: gives step sizes, zero points and the range of codes.
    """
    slices = weight.split(quantizer.sizes or weight.shape[1], dim=1)
    return torch.cat([_codes(part, q) for part, q in zip(slices, quantizer.quantizers())], dim=1)


def _codes(weight: Tensor, quantizer: UniformAffineQuantizer) -> Tensor:
    nearest = quantizer.codes(weight)
    errors = nearest + quantizer.lo - quantizer.zero_point - at_least_float32(weight) / quantizer.delta
    free = torch.where(errors > 0, nearest > 0, nearest < quantizer.hi - quantizer.lo)
    by_kernel = *weight.shape[:2], -1
    return nearest + flips(errors.reshape(by_kernel), free.reshape(by_kernel)).reshape(weight.shape).to(nearest)


def flips(errors: Tensor, free: Tensor) -> Tensor:
    """Return what SQuant-K and SQuant-C add to codes that are rounded to nearest: -1, 0 or 1.

    Args:
        errors: of these codes, float, (O, C, K): outputs, inputs, weights of a kernel.
        free: whether the code on the other side of the weight exists, bool, (O, C, K).

    Returns:
        like `errors`.
    """
    sums = errors.sum(2, keepdim=True)
    flipped = _largest(_reducing(errors, sums, free), sums)
    first = -sums.sign() * flipped
    errors = errors + first
    # One weight of each kernel is a candidate: the one that SQuant-K would have flipped next, or, if the sum has turned
    # its sign, the one that was flipped last, to go back. Both have the largest error of the sum's sign.
    sums = errors.sum(2, keepdim=True)
    sizes, candidates = _reducing(errors, sums, free).max(2, keepdim=True)  # (O, C, 1)
    totals = sums.sum(1, keepdim=True)
    sizes = torch.where(sums.sign() == totals.sign(), sizes, 0.0)
    flipped = _largest(sizes.transpose(1, 2), totals).transpose(1, 2)
    return first.scatter_add(2, candidates, -totals.sign() * flipped)


def _reducing(errors: Tensor, sums: Tensor, free: Tensor) -> Tensor:
    """Return |errors| of the weights whose flip brings the sum of their kernel towards zero, and 0 for the others."""
    return torch.where(free, errors * sums.sign(), 0.0).clamp_(min=0)


def _largest(sizes: Tensor, sums: Tensor) -> Tensor:
    """Tell which are the round(|sum|) largest of the sizes above 0, along the last dimension.

    Args:
        sizes: >= 0, (..., n).
        sums: (..., 1).

    Returns:
        bool, (..., n).
    """
    number = sums.abs().round().minimum((sizes > 0).sum(-1, keepdim=True))
    most = int(number.max())  # few, so that no row is sorted
    found = sizes.topk(most, dim=-1).indices
    return torch.zeros_like(sizes, dtype=torch.bool).scatter_(-1, found, torch.arange(most).to(number) < number)
