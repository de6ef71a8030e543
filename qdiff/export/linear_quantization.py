"""QuantizeLinear and DequantizeLinear as modules, which become these nodes of an exported graph."""

from typing import Any

import torch
from torch import Tensor, nn

from qdiff.integers import ActIntegers

OPSET = 21  # of ONNX: the first one with integers of 4 bits


def _node(name: str, inputs: tuple[Tensor, ...], dtype: torch.dtype, **attributes: Any) -> Tensor:
    """Return the output of an ONNX node, in the shape of its first input."""
    return torch.onnx.ops.symbolic(name, inputs, attributes, dtype=dtype, shape=inputs[0].shape, version=OPSET)


class Dequantize(nn.Module):
    """DequantizeLinear of an integer weight; zero points are 0, because engines compute with nothing else.

    Args:
        values: int8, any shape.
        scale: float32, one for each index of `axis`.
        axis: dimension of the output channels.
    """

    values: Tensor
    scale: Tensor

    def __init__(self, values: Tensor, scale: Tensor, axis: int):
        super().__init__()
        self.axis = axis
        self.register_buffer("values", values.contiguous())
        self.register_buffer("scale", scale.contiguous())

    def forward(self) -> Tensor:
        """Return values * scale, float32 in their shape."""
        return _node("DequantizeLinear", (self.values, self.scale), torch.float32, axis=self.axis)


class QuantizeDequantize(nn.Module):
    """QuantizeLinear and DequantizeLinear of an activation.

    The codes are int8 where the range is symmetric, so that the zero point is 0, and uint8 otherwise.

    Args:
        integers: of the activation, 8 bits or fewer.
        signed: take int8 in any case.
        keep_zero_point: do not subtract it, so that the result is larger than the activation by `excess`.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, integers: ActIntegers, *, signed: bool = False, keep_zero_point: bool = False):
        super().__init__()
        symmetric = integers.zero_point == 2 ** (integers.bits - 1)
        self.dtype = torch.int8 if signed or symmetric else torch.uint8
        first = _first_code(integers, symmetric, self.dtype)
        zero_point = integers.zero_point + first
        self.limits = _limits(integers, first, self.dtype)
        self.excess = zero_point * integers.scale if keep_zero_point else 0.0
        self.register_buffer("scale", torch.tensor(integers.scale))
        self.register_buffer("zero_point", torch.tensor(0 if keep_zero_point else zero_point, dtype=self.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`, of any shape, rounded to its codes, plus `excess`; float32."""
        if self.limits != (None, None):
            x = x.clamp(*self.limits)
        if self.excess:
            x = x + self.excess
        codes = _node("QuantizeLinear", (x, self.scale, self.zero_point), self.dtype)
        return _node("DequantizeLinear", (codes, self.scale, self.zero_point), torch.float32)


def _first_code(integers: ActIntegers, symmetric: bool, dtype: torch.dtype) -> int:
    """Return what the offset code 0 becomes in this type."""
    return -integers.zero_point if symmetric else torch.iinfo(dtype).min


def _limits(integers: ActIntegers, first: int, dtype: torch.dtype) -> tuple[float | None, float | None]:
    """Return the smallest and the largest value where their codes are not the ends of the type, which saturates."""
    low, high = (code - integers.zero_point for code in (0, integers.top))
    ends = torch.iinfo(dtype)
    return (
        low * integers.scale if first > ends.min else None,
        high * integers.scale if first + integers.top < ends.max else None,
    )


def quantize_dequantize(integers: ActIntegers | None) -> nn.Module:
    """Return the module that rounds an activation; it stays as it is without integers or with more than 8 bits."""
    return nn.Identity() if integers is None or integers.bits > 8 else QuantizeDequantize(integers)
