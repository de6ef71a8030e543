"""Quantizers and the quantized layer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from qdiff.functional import at_least_float32, fake_quantize
from qdiff.operations import OPERATIONS
from qdiff.packing import pack, unpack
from qdiff.policy import QuantSpec
from qdiff.ranges import RANGE_SEARCH, RowSummary, summarize

Part = TypeVar("Part", bound=nn.Module)


class UniformAffineQuantizer(nn.Module):
    """q(x) = (clamp(round(x / delta) + zero_point, lo, hi) - zero_point) * delta.

    A quantizer exists once its range is known: `fit` one to values, or make it from the numbers of a file.

    Args:
        delta: step size, float, shaped to broadcast against the quantized tensor: () or (C, 1, ..., 1).
        zero_point: integers in float dtype, shaped like `delta`; they may lie outside lo..hi.
        spec: bits and symmetry.

    Raises:
        ValueError: a step size that is not positive and finite, or a zero point that is not an integer.
    """

    zero_point: Tensor

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
        """Return None: the tensor is quantized whole. Those of a `SplitQuantizer` are the channels of its slices."""
        return None

    @classmethod
    def fit(cls, x: Tensor, spec: QuantSpec) -> "UniformAffineQuantizer":
        """Search the range of `x`, any shape, as `spec` says; per channel along dimension 0."""
        x = at_least_float32(x.detach())
        rows = x.flatten(1) if spec.per_channel else x.reshape(1, -1)
        return cls.fit_summary(summarize(rows), spec, (-1, *[1] * (x.ndim - 1)) if spec.per_channel else ())

    @classmethod
    def fit_summary(cls, summary: RowSummary, spec: QuantSpec, shape: Sequence[int] = ()) -> "UniformAffineQuantizer":
        """Search the range of summarized rows as `spec` says; step size and zero point get `shape`."""
        with torch.no_grad():
            delta, zero_point = RANGE_SEARCH[spec.range_search](summary, spec.bits, spec.symmetric, spec.always_zero)
        return cls(delta.reshape(shape), zero_point.reshape(shape), spec)

    def forward(self, x: Tensor) -> Tensor:
        """Quantize and dequantize `x`; returns its shape and dtype."""
        return fake_quantize(x, self.delta, self.zero_point, self.lo, self.hi)

    def codes(self, x: Tensor) -> Tensor:
        """Return the offset codes of `x` (code - lo, so 0..2^bits - 1); int32, the shape of `x`."""
        codes = (at_least_float32(x) / self.delta).round() + self.zero_point
        return (codes.clamp(self.lo, self.hi) - self.lo).to(torch.int32)

    def dequantize(self, codes: Tensor) -> Tensor:
        """Return the values of offset codes, same shape, from any device; dtype and device of `delta`."""
        return (codes.to(self.delta) + self.lo - self.zero_point) * self.delta

    def quantizers(self) -> list["UniformAffineQuantizer"]:
        """Return the quantizers with one range each: this one."""
        return [self]

    def per_slice(self, make: Callable[["UniformAffineQuantizer", Tensor], Part], x: Tensor) -> Part:
        """Return `make(quantizer, x)`, x of any shape; a `SplitQuantizer` makes one part for each slice."""
        return make(self, x)

    def extra_repr(self) -> str:
        """Return what print(model) shows."""
        return f"{self.spec.bits} bits, {'symmetric' if self.spec.symmetric else 'asymmetric'}"


class PerSlice(nn.Module, Generic[Part]):
    """One module for each slice of the channels (dimension 1): quantizers, observers or learned roundings.

    Args:
        parts: modules that map a slice to a tensor of its shape.
        sizes: channels of each slice.
    """

    def __init__(self, parts: Sequence[Part], sizes: Sequence[int]):
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.sizes = tuple(sizes)

    def __iter__(self) -> Iterator[Part]:
        return cast(Iterator[Part], iter(self.parts))  # torch does not tell what a ModuleList holds

    def _map(self, function: Callable[[Any, Tensor], Tensor], x: Tensor) -> Tensor:
        return torch.cat([function(part, xs) for part, xs in zip(self, x.split(self.sizes, dim=1))], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map each slice of `x` by its own part; returns the shape of `x`."""
        return self._map(lambda part, xs: part(xs), x)

    def codes(self, x: Tensor) -> Tensor:
        """Return the offset codes of `x`, int32 in its shape; of parts that have codes, which observers do not."""
        return self._map(lambda part, xs: part.codes(xs), x)


class SplitQuantizer(PerSlice[UniformAffineQuantizer]):
    """A quantizer for each slice of the channels, behind the interface of a single one (Q-Diffusion, section 3.3)."""

    @classmethod
    def fit(cls, x: Tensor, spec: QuantSpec, sizes: Sequence[int]) -> "SplitQuantizer":
        """Fit a quantizer to each slice of `x`, (N, sum of sizes, ...)."""
        return cls([UniformAffineQuantizer.fit(part, spec) for part in x.split(tuple(sizes), dim=1)], sizes)

    def dequantize(self, codes: Tensor) -> Tensor:
        """Return the values of offset codes, same shape, each slice's by its own quantizer."""
        return self._map(lambda q, part: q.dequantize(part), codes)

    def quantizers(self) -> list[UniformAffineQuantizer]:
        """Return the quantizers with one range each: one per slice."""
        return list(self)

    def per_slice(self, make: Callable[[UniformAffineQuantizer, Tensor], Part], x: Tensor) -> PerSlice[Part]:
        """Make a part, `make(quantizer, slice)`, for every slice of `x`, shape (N, C, ...)."""
        return PerSlice([make(q, part) for q, part in zip(self, x.split(self.sizes, dim=1))], self.sizes)


Quantizer = UniformAffineQuantizer | SplitQuantizer


def quantizer_from(
    state: Mapping[str, Tensor], prefix: str, spec: QuantSpec, split: tuple[int, ...] | None
) -> Quantizer:
    """Make a quantizer, or one for each slice, from the numbers under `prefix`. Raises as `QuantModel.from_state`."""

    def one(name: str) -> UniformAffineQuantizer:
        return UniformAffineQuantizer(state[f"{name}.delta"], state[f"{name}.zero_point"], spec)

    return SplitQuantizer([one(f"{prefix}.parts.{i}") for i in range(len(split))], split) if split else one(prefix)


def fit_quantizer(x: Tensor, spec: QuantSpec, sizes: Sequence[int] | None) -> Quantizer:
    """Fit a quantizer to `x`, of any shape, or one to each slice of its dimension 1 if `sizes` are given."""
    return SplitQuantizer.fit(x, spec, sizes) if sizes else UniformAffineQuantizer.fit(x, spec)


class Rounding(Protocol):
    """Learned rounding of a weight, as `AdaRoundQuantizer` or one of these for each slice."""

    def __call__(self, weight: Tensor) -> Tensor:
        """Return the quantized weight, in its shape."""

    def codes(self, weight: Tensor) -> Tensor:
        """Return the offset codes of `weight`, int32 in its shape."""

    def modules(self) -> Iterator[nn.Module]:
        """Yield the modules that it consists of."""


class QuantLeaf(nn.Module):
    """A leaf of a quantized network, in the place of a layer or an attention product.

    Attributes:
        quantizing: False while `QuantModel.full_precision` is active.
    """

    @property
    def has_full_precision(self) -> bool:
        """Whether it can compute without quantizers."""
        return True

    def __init__(self) -> None:
        super().__init__()
        self.quantizing = True


class QuantModule(QuantLeaf):
    """A convolution or linear layer with integer weights and, once calibrated, quantized inputs.

    Attributes:
        codes: offset codes of the weight (see `qdiff.policy`), uint8 in its shape.
        dequantized: their values, in the dtype and on the device of the weight; not in the state dict.
        act_quantizer: of the input; None until it is calibrated, and where the input stays in floating point.
        rounding: while it is being learned.

    Args:
        layer: the layer to replace, of a type in `OPERATIONS`. Its weight is kept until `forget_full_precision`.
        weight_quantizer: fitted to the weight.
        codes: offset codes of the weight, integers on any device; rounded to nearest if None.
    """

    codes: Tensor
    dequantized: Tensor

    def __init__(self, layer: nn.Module, weight_quantizer: Quantizer, codes: Tensor | None = None):
        super().__init__()
        weight, bias = layer.weight, layer.bias
        assert isinstance(weight, nn.Parameter) and (bias is None or isinstance(bias, nn.Parameter))
        self.operation = OPERATIONS[type(layer)](layer)
        self.weight: nn.Parameter | None = weight
        self.bias: nn.Parameter | None = bias
        self.fp_bias: nn.Parameter | None = None  # where `bias` has been corrected
        self.weight_quantizer = weight_quantizer
        self.act_quantizer: nn.Module | None = None
        self.rounding: Rounding | None = None
        self._register(weight.detach())
        with torch.no_grad():
            self.set_codes(weight_quantizer.codes(weight) if codes is None else codes)

    @property
    def split(self) -> tuple[int, ...] | None:
        """Input channels of each slice that has its own quantizers; None for a layer that is not split."""
        return self.weight_quantizer.sizes

    @property
    def has_full_precision(self) -> bool:
        """Whether the full-precision weight is kept."""
        return self.weight is not None

    @property
    def fp_weight(self) -> nn.Parameter:
        """The weight in full precision. Raises ValueError after `forget_full_precision`."""
        if self.weight is None:
            raise ValueError("this layer holds integer weights only; full precision needs the original checkpoint")
        return self.weight

    def _register(self, weight: Tensor) -> None:
        self.register_buffer("codes", torch.empty(0, dtype=torch.uint8))
        self.register_buffer("dequantized", weight.new_empty(0), persistent=False)
        self.register_load_state_dict_post_hook(_dequantize_loaded)

    def set_codes(self, codes: Tensor) -> None:
        """Replace the integer weights by offset codes in the weight's shape, from any device, and dequantize them."""
        self.dequantized = self.weight_quantizer.dequantize(codes).detach().to(self.dequantized)
        self.codes = codes.to(self.dequantized.device, torch.uint8)

    def set_bias(self, bias: Tensor) -> None:
        """Replace the bias that goes with the quantized weight; that of full precision stays."""
        if self.bias is None:
            raise ValueError("a layer without bias cannot have it replaced")
        self.fp_bias = self.bias if self.fp_bias is None else self.fp_bias
        self.bias = nn.Parameter(bias.detach().to(self.bias, copy=True), requires_grad=False)

    def quantized_weight(self) -> Tensor:
        """Return the values of the codes, in the shape of the weight."""
        return self.dequantized

    def forget_full_precision(self) -> None:
        """Free the full-precision weight."""
        self.weight = self.fp_bias = None

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to `x`, in its shapes, with quantized weights and, once calibrated, quantized input."""
        if not self.quantizing:
            return self.operation(x, self.fp_weight, self.bias if self.fp_bias is None else self.fp_bias)
        if self.act_quantizer is not None:
            x = self.act_quantizer(x)
        weight = self.quantized_weight() if self.rounding is None else self.rounding(self.fp_weight)
        return self.operation(x, weight, self.bias)


def _dequantize_loaded(layer: QuantModule, incompatible_keys: object) -> None:
    layer.set_codes(layer.codes)


class PackedModule(QuantModule):
    """A calibrated layer that keeps its codes packed and dequantizes them in every forward.

    That trades time for memory: at 4 bits it takes an eighth of the layer in float32. `state_dict` has no codes,
    because this layer comes from a file and is not written to another one.
    """

    like: Tensor  # empty; has the dtype and device of the values
    packed: Tensor

    def _register(self, weight: Tensor) -> None:
        self.shape = tuple(weight.shape)
        self.register_buffer("like", weight.new_empty(0), persistent=False)
        self.register_buffer("packed", weight.new_empty(0, dtype=torch.uint8), persistent=False)

    @property
    def _bits(self) -> int:
        return self.weight_quantizer.quantizers()[0].spec.bits

    @property
    def codes(self) -> Tensor:
        """Offset codes, uint8 in the weight's shape, unpacked on each access."""
        return unpack(self.packed, self._bits, self.shape)

    @codes.setter
    def codes(self, codes: Tensor) -> None:
        self.packed = pack(codes.to(torch.uint8), self._bits).to(self.packed.device)

    def set_codes(self, codes: Tensor) -> None:
        """Replace the integer weights by offset codes in the weight's shape, from any device."""
        self.codes = codes

    def quantized_weight(self) -> Tensor:
        """Dequantize the codes, in the shape of the weight."""
        return self.weight_quantizer.dequantize(self.codes).to(self.like)
