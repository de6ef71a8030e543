"""What the quantized layers compute, and what of their input each position of the output depends on."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from qdiff.windows import Windows


class Operation(Protocol):
    """y = operation(x, weight, bias) of a layer, for any weight of its shape."""

    groups: int

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the layer's output for `x`, in the shapes of the layer."""

    def windows(self, x: Tensor, kernel: tuple[int, ...]) -> Windows:
        """Return what each position of the output sees: y there is the weight, (O, K), times the window.

        Args:
            x: input of the layer, N samples.
            kernel: the weight's dimensions after the second.
        """

    def positions(self, y: Tensor) -> Windows:
        """Return the layer's output, N samples, in the same positions, with windows of (O, 1, 1)."""


class Convolution:
    """A convolution in one or two dimensions.

    Args:
        layer: gives the settings. Raises ValueError for a padding mode other than "zeros".
        function: `conv1d` or `conv2d`.
    """

    def __init__(self, layer: Any, function: Callable[..., Tensor]):
        if layer.padding_mode != "zeros":
            raise ValueError(
                f"a convolution with padding_mode '{layer.padding_mode}' cannot be quantized, only 'zeros'"
            )
        self.groups: int = layer.groups
        self.stride, self.dilation = layer.stride, layer.dilation
        self.function = partial(
            function, stride=layer.stride, padding=layer.padding, dilation=layer.dilation, groups=layer.groups
        )
        self.padding = _amounts(layer)

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the convolution of `x`, (N, C, ...)."""
        return self.function(x, weight, bias)

    def windows(self, x: Tensor, kernel: tuple[int, ...]) -> Windows:
        """Return the windows of `x`, see `Operation`."""
        return Windows(_image(F.pad(x, self.padding)), *map(_pair, (kernel, self.stride, self.dilation)))

    def positions(self, y: Tensor) -> Windows:
        """Return the output (N, O, ...) by position, see `Operation`."""
        return Windows(_image(y))


def _image(x: Tensor) -> Tensor:
    return x if x.ndim == 4 else x.unsqueeze(2)


def _pair(setting: Sequence[int]) -> tuple[int, int]:
    """Return a setting for height and width."""
    return (setting[0], setting[1]) if len(setting) == 2 else (1, setting[0])


def _amounts(layer: Any) -> list[int]:
    """Return the zeros before and after each dimension, the last dimension first."""
    if layer.padding == "valid":
        return [0, 0] * len(layer.kernel_size)
    if layer.padding == "same":
        totals = [d * (k - 1) for k, d in zip(layer.kernel_size, layer.dilation)]
        return [n for total in reversed(totals) for n in (total // 2, total - total // 2)]
    return [n for pad in reversed(layer.padding) for n in (pad, pad)]


class Linear:
    """A linear layer on the last dimension."""

    groups = 1

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return x W^T + b, for `x` of shape (..., C)."""
        return F.linear(x, weight, bias)

    def windows(self, x: Tensor, kernel: tuple[int, ...]) -> Windows:
        """Return the windows of `x`, (N, ..., C), see `Operation`."""
        return self.positions(x)

    def positions(self, y: Tensor) -> Windows:
        """Return the output (N, ..., O) by position, see `Operation`; what lies between is a row of positions."""
        return Windows(y.reshape(len(y), -1, y.shape[-1]).transpose(1, 2).unsqueeze(2))


# The layers that are quantized, by exact type -> their operation
OPERATIONS: dict[type, Callable[[Any], Operation]] = {
    nn.Conv2d: lambda layer: Convolution(layer, F.conv2d),
    nn.Conv1d: lambda layer: Convolution(layer, F.conv1d),
    nn.Linear: lambda layer: Linear(),
}
