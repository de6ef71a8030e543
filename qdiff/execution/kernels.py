"""Convolutions and linear layers of codes with int8 weights, by the operators of oneDNN that PyTorch contains.

An input is scale * (code - zero point), a weight scale * (value + shift). oneDNN adds up the products of codes less
their zero point and of values, exactly in int32, and scales the sum. The shift is the same for all weights of an output
channel, so that it adds shift times the sum of the inputs that an output sees.
"""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from qdiff.execution.codes import HALF, sums_of, to_unsigned_
from qdiff.integers import ActIntegers, WeightIntegers
from qdiff.operations import Convolution, Linear

onednn = torch.ops.onednn
NO_ZERO_POINT = torch.zeros(1, dtype=torch.int64)  # of the weights
FLOAT = (1.0, 0, torch.float32)  # scale, zero point and type of outputs


class Kernel(Protocol):
    """The operation of a layer on one slice of its input channels.

    Made from the layer's operation, the weight of the slice, its bias (float32 of shape (O,); None: there is none, or
    another slice adds it), and the integers of an input, which decide the layout of the packed weights. Inputs with
    other integers give the same result, perhaps more slowly.
    """

    nbytes: int
    """Bytes that weights, step sizes and shifts take."""

    def __call__(self, codes: Tensor, act: ActIntegers, onto: Tensor | None = None) -> Tensor:
        """Return the output for an input, added to `onto`.

        Args:
            codes: of the input, less 128, int8 in its shape; may be overwritten.
            act: its integers.
            onto: in the shape of the output; may be overwritten.
        """


class ConvolutionKernel:
    """A convolution in one or two dimensions; outputs are channels-last. See `Kernel`."""

    def __init__(self, operation: Convolution, weight: WeightIntegers, bias: Tensor | None, act: ActIntegers):
        values = _image(weight.values)
        self.scale, self.bias, self.box = weight.scale, bias, torch.ones(1, 1, *values.shape[2:])
        self.shift = _shift(weight, (1, -1, 1, 1))
        stride, dilation = _pair(operation.stride, 1), _pair(operation.dilation, 1)
        self.padding = _Padding(operation.padding)
        self.sees_one_pixel = values[0, 0].numel() == 1 and stride == [1, 1] and not any(operation.padding)
        self.settings = (stride, self.padding.both_ends, dilation, operation.groups)
        self.packed = onednn.qconv_prepack(values, weight.scale, act.scale, act.zero_point, *self.settings)
        self.nbytes = _nbytes(self.packed, self.scale, self.shift)

    def __call__(self, codes: Tensor, act: ActIntegers, onto: Tensor | None = None) -> Tensor:
        """Return the output, see `Kernel`."""
        image = self.padding.fill(_image(codes), act.zero_point - HALF)
        image = image.contiguous(memory_format=torch.channels_last)
        sums = None if self.shift is None else self._sums(image, act.zero_point)
        call: tuple[Any, ...] = (to_unsigned_(image), act.scale, act.zero_point, self.packed, self.scale, NO_ZERO_POINT)
        if onto is None:
            y = onednn.qconv2d_pointwise(*call, self.bias, *self.settings, *FLOAT, "none", [], "")
        else:
            call = (*call, _image(onto), self.bias, *self.settings, *FLOAT)
            y = onednn.qconv2d_pointwise.binary(*call, 1.0, 0, "sum", 1.0, None, [], None)
        if sums is not None:
            y.addcmul_(sums, self.shift, value=act.scale)
        return y if codes.ndim == 4 else y.squeeze(2)

    def _sums(self, image: Tensor, zero_point: int) -> Tensor:
        """Return the sums of codes less their zero point in the windows of the outputs, (N, 1, H, W); exact."""
        pixels = sums_of(image.permute(0, 2, 3, 1), zero_point).permute(0, 3, 1, 2).float()
        if self.sees_one_pixel:
            return pixels
        stride, padding, dilation, _ = self.settings
        return F.conv2d(pixels, self.box, None, stride, padding, dilation)


class LinearKernel:
    """A linear layer on the last dimension. See `Kernel`."""

    def __init__(self, operation: Linear, weight: WeightIntegers, bias: Tensor | None, act: ActIntegers):
        self.scale, self.bias, self.shift = weight.scale, bias, _shift(weight, (-1,))
        self.packed = onednn.qlinear_prepack(weight.values, None)
        self.nbytes = _nbytes(self.packed, self.scale, self.shift)

    def __call__(self, codes: Tensor, act: ActIntegers, onto: Tensor | None = None) -> Tensor:
        """Return the output, see `Kernel`."""
        sums = None if self.shift is None else sums_of(codes, act.zero_point)
        codes = to_unsigned_(codes.contiguous())
        call: tuple[Any, ...] = (codes, act.scale, act.zero_point, self.packed, self.scale, NO_ZERO_POINT)
        if onto is None:
            y = onednn.qlinear_pointwise(*call, self.bias, *FLOAT, "none", [], "")
        else:
            call = (*call, onto, self.bias, *FLOAT)
            y = onednn.qlinear_pointwise.binary(*call, 1.0, 0, "sum", 1.0, "none", [], "")
        return y if sums is None else y.addcmul_(sums.float(), self.shift, value=act.scale)


class _Padding:
    """Zeros around an image.

    Args:
        amounts: before and after each dimension, the last one first, as `Convolution` has them.
    """

    def __init__(self, amounts: list[int]):
        before, after = amounts[::2], amounts[1::2]
        self.rest = amounts if before != after else []  # what oneDNN's operator does not pad
        self.both_ends = [0, 0] if self.rest else _pair(before[::-1], 0)

    def fill(self, image: Tensor, value: int) -> Tensor:
        return F.pad(image, self.rest, value=value) if self.rest else image


def _image(x: Tensor) -> Tensor:
    return x if x.ndim == 4 else x.unsqueeze(2)


def _pair(setting: Any, of_height: int) -> list[int]:
    """Return a setting for height and width; a convolution in one dimension has none for the height."""
    return list(setting) if len(setting) == 2 else [of_height, *setting]


def _shift(weight: WeightIntegers, shape: tuple[int, ...]) -> Tensor | None:
    return (weight.shift * weight.scale).view(shape) if weight.shift.any() else None


def _nbytes(packed: Tensor, *others: Tensor | None) -> int:
    return torch.ops.mkldnn._nbytes(packed) + sum(x.nbytes for x in others if x is not None)
