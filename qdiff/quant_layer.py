"""Quantizers and the quantized layer."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qdiff.functional import at_least_float32, fake_quantize
from qdiff.packing import pack, unpack
from qdiff.policy import QuantSpec
from qdiff.ranges import RANGE_SEARCH, RowSummary, summarize


class UniformAffineQuantizer(nn.Module):
    """q(x) = (clamp(round(x / delta) + zero_point, lo, hi) - zero_point) * delta.

    A quantizer exists once its range is known: make one with `fit`, or from the numbers of a file.

    Args:
        delta: step size, float, shaped to broadcast against what is quantized: () or (C, 1, ..., 1).
        zero_point: integers in float dtype, shaped like `delta`.
        spec: bits and symmetry.

    Raises:
        ValueError: a step that is not positive and finite, or a zero point that is not an integer.
    """

    def __init__(self, delta: Tensor, zero_point: Tensor, spec: QuantSpec):
        super().__init__()
        self.spec = spec
        self.lo, self.hi = spec.bounds
        if not (torch.isfinite(delta).all() and (delta > 0).all()):
            raise ValueError("a step size is not positive and finite")
        if not (torch.isfinite(zero_point).all() and (zero_point == zero_point.round()).all()):
            raise ValueError("a zero point is not an integer")
        self.delta = nn.Parameter(delta.detach().clone(), requires_grad=False)
        self.register_buffer("zero_point", zero_point.detach().clone())

    @property
    def sizes(self) -> None:
        """Channels of its slices: it has none."""

    @classmethod
    def fit(cls, x: Tensor, spec: QuantSpec) -> "UniformAffineQuantizer":
        """The quantizer whose range the spec's search finds on `x`, any shape; per channel along dimension 0."""
        x = at_least_float32(x.detach())
        rows = x.flatten(1) if spec.per_channel else x.reshape(1, -1)
        return cls.fit_summary(summarize(rows), spec, (-1, *[1] * (x.ndim - 1)) if spec.per_channel else ())

    @classmethod
    def fit_summary(cls, summary: RowSummary, spec: QuantSpec, shape: Sequence[int] = ()) -> "UniformAffineQuantizer":
        """The quantizer whose range the spec's search finds for such rows; `shape` is that of its step size."""
        with torch.no_grad():
            delta, zero_point = RANGE_SEARCH[spec.range_search](summary, spec.bits, spec.symmetric, spec.always_zero)
        return cls(delta.reshape(shape), zero_point.reshape(shape), spec)

    def forward(self, x: Tensor) -> Tensor:
        """Fake quantization; the shape of `x`."""
        return fake_quantize(x, self.delta, self.zero_point, self.lo, self.hi)

    def codes(self, x: Tensor) -> Tensor:
        """Codes of `x`, less `lo` so that they start at 0; int32."""
        codes = (at_least_float32(x) / self.delta).round() + self.zero_point
        return (codes.clamp(self.lo, self.hi) - self.lo).to(torch.int32)

    def dequantize(self, codes: Tensor) -> Tensor:
        """Values of `codes` as `codes()` gives them, on any device; dtype and device of `delta`."""
        return (codes.to(self.delta) + self.lo - self.zero_point) * self.delta

    def quantizers(self) -> list["UniformAffineQuantizer"]:
        """The quantizers of one range each: this one."""
        return [self]

    def per_slice(self, make: Callable[["UniformAffineQuantizer", Tensor], nn.Module], x: Tensor) -> nn.Module:
        """`make(quantizer, x)`: the same call on a split quantizer gives a split result."""
        return make(self, x)

    def extra_repr(self) -> str:
        """Shown by print(model)."""
        return f"{self.spec.bits} bits, {'symmetric' if self.spec.symmetric else 'asymmetric'}"


class SplitQuantizer(nn.Module):
    """One part per slice of the channels (dimension 1), behind the interface of a single quantizer (Q-Diffusion, 3.3).

    Args:
        parts: anything that maps a slice to its quantized self: quantizers, observers, learned rounding.
        sizes: channels of each slice.
    """

    def __init__(self, parts: Sequence[nn.Module], sizes: Sequence[int]):
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.sizes = tuple(sizes)

    @classmethod
    def fit(cls, x: Tensor, spec: QuantSpec, sizes: Sequence[int]) -> "SplitQuantizer":
        """A quantizer fitted to each slice of `x`."""
        return cls([UniformAffineQuantizer.fit(part, spec) for part in x.split(tuple(sizes), dim=1)], sizes)

    def _map(self, function: Callable[[nn.Module, Tensor], Tensor], x: Tensor) -> Tensor:
        return torch.cat([function(q, part) for q, part in zip(self.parts, x.split(self.sizes, dim=1))], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Each slice through its own part; the shape of `x`."""
        return self._map(lambda q, part: q(part), x)

    def codes(self, x: Tensor) -> Tensor:
        """As of a single quantizer."""
        return self._map(lambda q, part: q.codes(part), x)

    def dequantize(self, codes: Tensor) -> Tensor:
        """As of a single quantizer."""
        return self._map(lambda q, part: q.dequantize(part), codes)

    def quantizers(self) -> list[UniformAffineQuantizer]:
        """The quantizers of one range each: one per slice."""
        return [q for part in self.parts for q in part.quantizers()]

    def per_slice(self, make: Callable[[UniformAffineQuantizer, Tensor], nn.Module], x: Tensor) -> "SplitQuantizer":
        """A split module with `make(quantizer, slice)` for every slice of `x`."""
        return SplitQuantizer([make(q, part) for q, part in zip(self.parts, x.split(self.sizes, dim=1))], self.sizes)


Quantizer = UniformAffineQuantizer | SplitQuantizer


def fit_quantizer(x: Tensor, spec: QuantSpec, sizes: Sequence[int] | None) -> Quantizer:
    """A quantizer for `x`, split along dimension 1 where `sizes` says so."""
    return SplitQuantizer.fit(x, spec, sizes) if sizes else UniformAffineQuantizer.fit(x, spec)


def _conv(layer: nn.Conv1d | nn.Conv2d, function: Callable) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    if layer.padding_mode != "zeros":
        raise ValueError(f"a convolution with padding_mode '{layer.padding_mode}' cannot be quantized, only 'zeros'")
    return partial(function, stride=layer.stride, padding=layer.padding, dilation=layer.dilation, groups=layer.groups)


# How a layer of each type is applied to other weights: (x, weight, bias) -> y.
OPERATIONS: dict[type, Callable[[nn.Module], Callable]] = {
    nn.Conv2d: lambda layer: _conv(layer, F.conv2d),
    nn.Conv1d: lambda layer: _conv(layer, F.conv1d),
    nn.Linear: lambda layer: F.linear,
}


class QuantModule(nn.Module):
    """A convolution or linear layer with integer weight codes and, once calibrated, quantized inputs.

    Args:
        layer: what it replaces; its weight is kept as long as `full_precision` may be asked for.
        weight_quantizer: fitted to the weight.
        codes: integer weights as `weight_quantizer.codes` gives them; rounding to nearest where None.
    """

    def __init__(self, layer: nn.Module, weight_quantizer: Quantizer, codes: Tensor | None = None):
        super().__init__()
        self.operation = OPERATIONS[type(layer)](layer)
        self.quantizing = True
        self.weight: nn.Parameter | None = layer.weight
        self.bias = layer.bias
        self.weight_quantizer = weight_quantizer
        self.act_quantizer: nn.Module | None = None
        self.rounding: nn.Module | None = None  # learned rounding, while it is being learned
        self._make_room(layer.weight.detach())
        with torch.no_grad():
            self.set_codes(weight_quantizer.codes(layer.weight) if codes is None else codes)

    @property
    def split(self) -> tuple[int, ...] | None:
        """Channels of each slice that is quantized by itself, None for an ordinary layer."""
        return self.weight_quantizer.sizes

    def _make_room(self, weight: Tensor) -> None:
        self.register_buffer("codes", torch.empty(0, dtype=torch.uint8))
        self.register_buffer("dequantized", weight.new_empty(0), persistent=False)
        self.register_load_state_dict_post_hook(_after_load)

    def set_codes(self, codes: Tensor) -> None:
        """Take integer weights, from any device; their values are computed here, once, and not in every forward."""
        self.dequantized = self.weight_quantizer.dequantize(codes).detach().to(self.dequantized)
        self.codes = codes.to(self.dequantized.device, torch.uint8)

    def quantized_weight(self) -> Tensor:
        """The values of the codes."""
        return self.dequantized

    def forget_full_precision(self) -> None:
        """Give up the original weight."""
        self.weight = None

    def forward(self, x: Tensor) -> Tensor:
        """The layer on quantized weights and, where there is an activation quantizer, quantized input."""
        if not self.quantizing:
            return self.operation(x, self.weight, self.bias)
        if self.act_quantizer is not None:
            x = self.act_quantizer(x)
        weight = self.quantized_weight() if self.rounding is None else self.rounding(self.weight)
        return self.operation(x, weight, self.bias)


def _after_load(layer: QuantModule, incompatible_keys) -> None:
    layer.set_codes(layer.codes)


class PackedModule(QuantModule):
    """A finished layer that keeps its codes packed and computes their values in every forward.

    That takes time instead of memory: at 4 bits an eighth of what the layer has in full precision. `state_dict` has no
    codes, for this layer comes from a file and is not written to another.
    """

    def _make_room(self, weight: Tensor) -> None:
        self.shape = tuple(weight.shape)
        self.register_buffer("like", weight.new_empty(0), persistent=False)  # dtype and device of the values
        self.register_buffer("packed", weight.new_empty(0, dtype=torch.uint8), persistent=False)

    @property
    def _bits(self) -> int:
        return self.weight_quantizer.quantizers()[0].spec.bits

    @property
    def codes(self) -> Tensor:
        """Integer weights, unpacked."""
        return unpack(self.packed, self._bits, self.shape)

    def set_codes(self, codes: Tensor) -> None:
        """Take integer weights, from any device."""
        self.packed = pack(codes.to(torch.uint8), self._bits).to(self.packed.device)

    def quantized_weight(self) -> Tensor:
        """The values of the codes, computed anew."""
        return self.weight_quantizer.dequantize(self.codes).to(self.like)
