"""Quantizes activations to the bytes that integer operators read."""

import torch
from torch import Tensor

from qdiff.integers import ActIntegers

HALF = 128  # of the range of a byte: PyTorch converts float32 to int8 ten times as fast as to uint8


def to_codes(x: Tensor, integers: ActIntegers) -> Tensor:
    """Return the codes of an activation, clamp(round(x / scale) + zero_point, 0, 2^bits - 1).

    Few passes over the tensor matter more here than its last bit: values halfway between two codes may take the other.

    Args:
        x: any float tensor, of any layout.
        integers: of at most 8 bits.

    Returns:
        uint8 in the shape of `x`; dense, its dimensions in the order that they have in memory in `x`.
    """
    return to_signed_codes(x, integers).view(torch.uint8).bitwise_xor_(HALF)


def to_signed_codes(x: Tensor, integers: ActIntegers) -> Tensor:
    """Return the codes of an activation less 128, int8; otherwise as `to_codes`."""
    offset = torch.tensor(float(integers.zero_point - HALF))
    scaled = torch.add(offset, x.float(), alpha=1 / integers.scale)
    return scaled.clamp_(-HALF, integers.top - HALF).round_().to(torch.int8)
