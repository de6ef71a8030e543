"""The integers that engines compute with, from the codes, step sizes and zero points of quantizers."""

from dataclasses import dataclass

import torch
from torch import Tensor

from qdiff.quant_layer import QuantModule, UniformAffineQuantizer
from qdiff.ranges import affine

INT8 = torch.iinfo(torch.int8)


@dataclass(frozen=True)
class ActIntegers:
    """Integers of an activation: x is about scale * (code - zero_point), with codes of 0..2^bits - 1.

    Args:
        scale: step size, > 0, as float32.
        zero_point: 0..2^bits - 1.
        bits: 2..16; up to 8 bits fit into uint8, where fewer than 8 still have to be clamped to 2^bits - 1.
        refitted: whether the range was widened to contain zero, because the zero point was no code.
    """

    scale: float
    zero_point: int
    bits: int
    refitted: bool = False

    @property
    def top(self) -> int:
        """The largest code."""
        return 2**self.bits - 1


def act_integers(quantizer: UniformAffineQuantizer) -> ActIntegers:
    """Return the integers of the quantizer of an activation.

    They are its offset codes. Searches by error and those of the published code find ranges without zero, whose zero
    point is no code. Clamping it would shift the whole tensor; the range is widened to contain zero instead.

    Args:
        quantizer: with one range, delta of shape ().
    """
    bits, lo, hi = quantizer.spec.bits, quantizer.lo, quantizer.hi
    delta, zero_point = quantizer.delta.detach().float().cpu(), quantizer.zero_point.float().cpu()
    if lo <= zero_point <= hi:
        return ActIntegers(float(delta), int(zero_point) - lo, bits)
    ends = (torch.tensor([lo, hi]) - zero_point) * delta
    scale, zero = affine(ends[0].clamp(max=0), ends[1].clamp(min=0), bits, symmetric=False)
    return ActIntegers(float(scale), int(zero), bits, refitted=True)


@dataclass(frozen=True)
class WeightIntegers:
    """Integers of a weight, or of one slice of its input channels: w = scale * (values + shift), exactly.

    Args:
        values: int8 of shape (O, I, ...).
        shift: int32 of shape (O,): 0 where the codes less their zero point fit into int8, as they do up to 7 bits where
            the zero point is a code. By linearity, a layer's output needs shift times the sum of the inputs added.
        scale: step sizes, float32 of shape (O,).
    """

    values: Tensor
    shift: Tensor
    scale: Tensor


def weight_integers(layer: QuantModule) -> list[WeightIntegers]:
    """Return the integers of a layer's weight, one for each of its slices, on the CPU."""
    sizes = layer.split or (layer.codes.shape[1],)
    codes = layer.codes.cpu().split(sizes, dim=1)
    return [_integers(q, part) for q, part in zip(layer.weight_quantizer.quantizers(), codes)]


def _integers(quantizer: UniformAffineQuantizer, codes: Tensor) -> WeightIntegers:
    outputs, ones = codes.shape[0], [1] * (codes.ndim - 1)
    zero_point = (quantizer.zero_point.cpu() - quantizer.lo).to(torch.int32).expand(outputs, *ones)
    values = codes.to(torch.int32) - zero_point
    low, high = values.flatten(1).aminmax(dim=1)
    middle = torch.div(low + high + 1, 2, rounding_mode="floor")
    shift = torch.where((low < INT8.min) | (high > INT8.max), middle, 0).to(torch.int32)
    scale = quantizer.delta.detach().float().cpu().expand(outputs, *ones).flatten()
    return WeightIntegers((values - shift.view(-1, *ones)).to(torch.int8), shift, scale.contiguous())
