"""Layers of executed networks: those that compute with integers, and those whose inputs stay in floating point."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qdiff.execution.codes import to_codes
from qdiff.execution.kernels import ConvolutionKernel, Kernel, LinearKernel
from qdiff.execution.leaf import ExecutedLeaf, quantizers_of
from qdiff.integers import ActIntegers, WeightIntegers, act_integers
from qdiff.operations import Convolution, Linear
from qdiff.phases import PerPhase
from qdiff.quant_layer import QuantModule

# Operation of a layer, by exact type -> how it is computed with integers
KERNELS: dict[type, Callable[[Any, WeightIntegers, Tensor | None, ActIntegers], Kernel]] = {
    Convolution: ConvolutionKernel,
    Linear: LinearKernel,
}


class Slices(nn.Module):
    """A layer in one phase: each slice of its input channels, quantized and multiplied by its weights; their sum.

    Args:
        kernels: of each slice; phases share them.
        acts: integers of each slice's input, of at most 8 bits.
        sizes: channels of each slice.
    """

    def __init__(self, kernels: Sequence[Kernel], acts: Sequence[ActIntegers], sizes: tuple[int, ...] | None):
        super().__init__()
        self.kernels, self.acts, self.sizes = kernels, acts, sizes

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to `x`, in its shapes and float32."""
        y = None
        for kernel, act, part in zip(self.kernels, self.acts, x.split(self.sizes, dim=1) if self.sizes else (x,)):
            y = kernel(to_codes(part, act), act, y)
        assert y is not None
        return y


class IntegerLayer(ExecutedLeaf):
    """A calibrated convolution or linear layer that computes with int8 weights and uint8 inputs.

    Args:
        layer: the quantized layer, whose inputs have at most 8 bits; it is not changed.
        weights: its integers, of each slice.
    """

    dtype, reason = torch.int8, ""

    def __init__(self, layer: QuantModule, weights: Sequence[WeightIntegers]):
        super().__init__()
        self.bias = layer.bias
        phases = [[act_integers(part) for part in phase.quantizers()] for phase in quantizers_of(layer.act_quantizer)]
        biases = [None if layer.bias is None else layer.bias.detach().float(), *[None] * (len(weights) - 1)]
        make = KERNELS[type(layer.operation)]
        kernels = [make(layer.operation, *parts) for parts in zip(weights, biases, phases[0])]
        slices = [Slices(kernels, acts, layer.split) for acts in phases]
        self.slices = PerPhase(slices) if len(slices) > 1 else slices[0]
        self.nbytes = sum(kernel.nbytes for kernel in kernels)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to `x`, in its shapes and dtype."""
        return self.slices(x).to(x.dtype)


class FloatLayer(ExecutedLeaf):
    """A layer with int8 weights that are dequantized in every forward, to compute in floating point.

    The result is that of the quantized layer, in float32 but for roundings of bfloat16.

    Args:
        layer: the quantized layer; it is not changed.
        weights: its integers, of each slice.
        reason: why it does not compute with integers.
        dtype: in which it computes.
    """

    def __init__(self, layer: QuantModule, weights: Sequence[WeightIntegers], reason: str, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype
        self.operation, self.bias, self.act_quantizer = layer.operation, layer.bias, layer.act_quantizer
        self.weights, self.reason = weights, reason
        self.nbytes = sum(x.nbytes for w in weights for x in (w.values, w.shift, w.scale))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to `x`, in its shapes."""
        weight = torch.cat([_dequantize(w).to(self.dtype) for w in self.weights], dim=1)
        bias = None if self.bias is None else self.bias.to(self.dtype)
        y = x if self.act_quantizer is None else self.act_quantizer(x)
        return self.operation(y.to(self.dtype), weight, bias).to(x.dtype)


def _dequantize(weight: WeightIntegers) -> Tensor:
    ones = [1] * (weight.values.ndim - 1)
    return (weight.values + weight.shift.view(-1, *ones)) * weight.scale.view(-1, *ones)
