"""What the quantized layers compute, and the columns of their inputs that each output position sees."""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor, nn


class Operation(Protocol):
    """y = operation(x, weight, bias) of a layer, for any weight of its shape."""

    groups: int

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the layer's output for `x`, in the shapes of the layer."""

    def windows(self, x: Tensor, kernel: tuple[int, ...]) -> Tensor:
        """Return a view of what each output position sees.

        Args:
            x: input of the layer, N samples.
            kernel: the weight's dimensions after the second.

        Returns:
            (N, C, H, W, kh, kw): y at position (h, w) is the weight, flattened from its dimension 1 on, times
            [:, :, h, w] of this. H is 1 where the positions of the output are in a row, H and W are 1 for vectors.
        """


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

    def windows(self, x: Tensor, kernel: tuple[int, ...]) -> Tensor:
        """Return the windows of `x`, see `Operation`."""
        x = F.pad(x, self.padding)
        found = x if len(kernel) == 2 else x.unsqueeze(2)
        sizes = zip((1,) * (2 - len(kernel)) + tuple(kernel), self._both(self.stride), self._both(self.dilation))
        for dim, (size, stride, dilation) in enumerate(sizes, start=2):
            found = found.unfold(dim, dilation * (size - 1) + 1, stride)[..., ::dilation]
        return found

    def _both(self, setting: tuple[int, ...]) -> tuple[int, ...]:
        """Return a setting for height and width."""
        return (1,) * (2 - len(setting)) + setting


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

    def windows(self, x: Tensor, kernel: tuple[int, ...]) -> Tensor:
        """Return the windows of `x`, (N, ..., C); see `Operation`. What lies between is a row of positions."""
        return x.reshape(len(x), -1, x.shape[-1]).transpose(1, 2)[:, :, None, :, None, None]


# The layers that are quantized, by exact type -> their operation
OPERATIONS: dict[type, Callable[[Any], Operation]] = {
    nn.Conv2d: lambda layer: Convolution(layer, F.conv2d),
    nn.Conv1d: lambda layer: Convolution(layer, F.conv1d),
    nn.Linear: lambda layer: Linear(),
}
