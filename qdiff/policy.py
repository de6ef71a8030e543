"""What is quantized how: frozen, validated descriptions without tensors."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from qdiff.functional import code_bounds
from qdiff.ranges import RANGE_SEARCH


@dataclass(frozen=True)
class QuantSpec:
    """How one tensor is quantized.

    Args:
        bits: 2..16.
        symmetric: codes around zero, zero point 0.
        per_channel: one step size per output channel (dimension 0) instead of one for the tensor.
        range_search: `mse`, `minmax`, or the published `max` and `max_scale` (see `qdiff.ranges`).
        always_zero: the values are known to start at zero (attention after softmax).

    Raises:
        ValueError: bits or range search outside their range.
    """

    bits: int
    symmetric: bool = False
    per_channel: bool = False
    range_search: str = "mse"
    always_zero: bool = False

    def __post_init__(self):
        if not (isinstance(self.bits, int) and 2 <= self.bits <= 16):
            raise ValueError(f"bits must be a whole number, 2..16, not {self.bits}")
        if self.range_search not in RANGE_SEARCH:
            raise ValueError(f"range_search must be one of {', '.join(RANGE_SEARCH)}, not '{self.range_search}'")

    @property
    def bounds(self) -> tuple[int, int]:
        """Smallest and largest code."""
        return code_bounds(self.bits, self.symmetric)

    @property
    def step_is_learned(self) -> bool:
        """A 16-bit quantizer keeps its initial step: its error is far below what learning can resolve."""
        return self.bits < 16


@dataclass(frozen=True)
class QuantPolicy:
    """Which spec each tensor of a network gets.

    Args:
        weight: of every convolution and linear layer; at most 8 bits, because codes are stored as bytes.
        act: of their inputs and of the attention operands; None leaves activations in floating point.
        softmax_bits: of the attention weights, 2..16.
        split: a quantizer for each of the two halves that a shortcut layer of the up path sees (Q-Diffusion, 3.3).

    Raises:
        ValueError: weights with more than 8 bits, activations per channel.
    """

    weight: QuantSpec = QuantSpec(bits=8, per_channel=True, range_search="minmax")
    act: QuantSpec | None = None
    softmax_bits: int = 8
    split: bool = False

    def __post_init__(self):
        if self.act and self.act.per_channel:
            raise ValueError("activations have one step size per tensor, not per channel")
        if self.weight.bits > 8:
            raise ValueError(f"weights take 2..8 bits, not {self.weight.bits}")
        replace(self.weight, bits=self.softmax_bits)  # checks the number of bits

    @classmethod
    def from_dict(cls, data: Mapping) -> "QuantPolicy":
        """The policy that `to_dict` wrote. Raises KeyError, TypeError or ValueError where it is not one."""
        act = data["act"]
        return cls(
            weight=QuantSpec(**data["weight"]),
            act=None if act is None else QuantSpec(**act),
            softmax_bits=data["softmax_bits"],
            split=data["split"],
        )

    def to_dict(self) -> dict:
        """Plain JSON types."""
        return asdict(self)

    def without_activations(self) -> "QuantPolicy":
        """The same weights, activations in floating point."""
        return replace(self, act=None)
