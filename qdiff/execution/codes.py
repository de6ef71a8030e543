"""Quantizes activations to the bytes that integer operators read."""

import torch
from torch import Tensor

from qdiff.integers import ActIntegers

HALF = 128  # of the range of a byte


def to_codes(x: Tensor, integers: ActIntegers) -> Tensor:
    """Return the codes of an activation less 128, clamp(round(x / scale) + zero_point, 0, 2^bits - 1) - 128.

    PyTorch converts float32 to int8 ten times as fast as to uint8. Few passes over the tensor matter more here than the
    last bit: values halfway between two codes may take the other one.

    Args:
        x: any float tensor, of any layout.
        integers: of at most 8 bits.

    Returns:
        int8 in the shape of `x`; dense, its dimensions in the order that they have in memory in `x`.
    """
    offset = torch.tensor(float(integers.zero_point - HALF))
    scaled = torch.add(offset, x.float(), alpha=1 / integers.scale)
    return scaled.clamp_(-HALF, integers.top - HALF).round_().to(torch.int8)


def to_unsigned_(codes: Tensor) -> Tensor:
    """Add 128 to codes, int8, in place; returns the same memory as uint8."""
    return codes.view(torch.uint8).bitwise_xor_(HALF)


def matmul(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """Return the product of int8 matrices, (M, K) and (K, N) of any layout, exactly, as int32.

    Args:
        a, b: factors.
        out: int32 of shape (M, N), contiguous, where to put it; None: new memory.
    """
    return torch._int_mm(_dense(a), _dense(b), out=out)


def _dense(x: Tensor) -> Tensor:
    """Return a matrix as it is; a single row or column with its own strides, which the operator goes by."""
    return x.reshape(-1).view(x.shape) if 1 in x.shape else x


def sums_of(codes: Tensor, zero_point: int) -> Tensor:
    """Return the sums of codes less their zero point over the last dimension, which is kept; int32.

    Args:
        codes: less 128, int8.
    """
    count = codes.shape[-1]
    sums = matmul(codes.reshape(-1, count), torch.ones(count, 1, dtype=torch.int8))  # five times as fast as `sum`
    return sums.view(*codes.shape[:-1], 1).add_(count * (HALF - zero_point))
