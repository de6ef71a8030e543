"""What is quantized how: frozen, validated descriptions without tensors.

For whoever stores or exports quantized numbers:

- A *code* of b bits is an integer lo..hi, the `bounds` of its spec; its value is (code - zero_point) * delta.
- `QuantModule.codes`, files and `qdiff.packing` hold *offset codes*, code - lo, which are 0..2^b - 1 whatever lo is.
- A *zero point* is any integer. Only the search `minmax` keeps it within lo..hi; the others may leave that range where
  all values of a channel have the same sign. A format with zero points in the type of the codes cannot express that.
"""

from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from itertools import pairwise
from math import floor
from typing import Any, TypeVar

from qdiff.errors import suggestion
from qdiff.functional import code_bounds
from qdiff.ranges import RANGE_SEARCH

WeightRule = tuple[str, int]  # pattern of paths, bits
ActRule = tuple[str, int | None]  # pattern of paths, bits or None for floating point
ActPhase = tuple[int, int]  # first timestep, bits
OPTIONAL = ("weight_rules", "act_rules", "act_phases")  # left out of a description where empty

Bits = TypeVar("Bits")


@dataclass(frozen=True)
class QuantSpec:
    """How one tensor is quantized.

    Args:
        bits: 2..16.
        symmetric: zero point 0, codes -2^(bits - 1)..2^(bits - 1) - 1; otherwise 0..2^bits - 1.
        per_channel: one step size per output channel (dimension 0) instead of one for the tensor.
        range_search: `mse`, `minmax`, `margin`, or the published code's `max` and `max_scale` (see `qdiff.ranges`).
        always_zero: the low end of the range is zero (attention after its softmax).

    Raises:
        ValueError: another number of bits, or an unknown range search.
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
        """Whether the step size is worth learning: not at 16 bits, whose error is far below what learning resolves."""
        return self.bits < 16


@dataclass(frozen=True)
class QuantPolicy:
    """Which spec each tensor of a network gets: `weight_for` and `act_for` tell it by path and phase.

    Rules change the bits of some layers. Each is a pattern of paths, as `QuantModel.layers()` and
    `python -m qdiff inspect` write them, with `*` for any characters (dots too), and the bits; the last one that
    matches decides. First and last layer at 8 bits, the input of the last one in floating point:

        QuantPolicy(
            w4, a8, weight_rules=(("*.conv_in", 8), ("*.conv_out", 8)), act_rules=(("*.conv_out", None),)
        )

    Phases change the bits of activations during sampling (PTQD, He et al. 2023, section 3.4): noisy images bear coarser
    activations than those at the end, and the weights stay the same. Each phase has its own ranges and step sizes, also
    where its bits are those of another. 8 bits at timesteps 0..599, 4 bits from 600 on:

        QuantPolicy(w4, a8, act_phases=((600, 4),))

    Args:
        weight: of every convolution and linear layer; at most 8 bits, because codes are stored as bytes.
        act: of their inputs and of the attention operands; None leaves all activations in floating point.
        softmax_bits: of the attention weights, 2..16.
        split: quantize the input channels of a shortcut layer in the up path in two slices, those of the layer below
            and those of the skip connection, with their weights (Q-Diffusion, section 3.3).
        weight_rules: layers whose weights have other bits, 2..8.
        act_rules: activations with other bits, 2..16, or None for floating point. A layer's path stands for its input,
            that of an attention product for both operands, attention weights included; `<path>.<operand>` for one.
            These bits are the same in all phases.
        act_phases: first timestep and bits, 2..16, of every phase after the one that begins at timestep 0, which has
            the bits of `act`; in ascending order. They change neither `softmax_bits` nor the bits of a rule.

    Raises:
        ValueError: weights with more than 8 bits, activations per channel, rules or phases for activations without
            `act`, a rule that is not a pattern and bits in range, or phases that are not timesteps and bits in order.
    """

    weight: QuantSpec = QuantSpec(bits=8, per_channel=True, range_search="minmax")
    act: QuantSpec | None = None
    softmax_bits: int = 8
    split: bool = False
    weight_rules: tuple[WeightRule, ...] = ()
    act_rules: tuple[ActRule, ...] = ()
    act_phases: tuple[ActPhase, ...] = ()

    def __post_init__(self):
        if self.act and self.act.per_channel:
            raise ValueError("activations have one step size per tensor, not per channel")
        for what, changes in (("rules", self.act_rules), ("phases", self.act_phases)):
            if changes and not self.act:
                raise ValueError(f"{what} for activations need `act`, the spec that they change")
        _check_order(self.act_phases)
        for weight_bits in (self.weight.bits, *_bits_of(self.weight_rules)):
            _check_bits("weights", weight_bits, 8)
        for _, phase_bits in self.act_phases:
            _check_bits("activations", phase_bits, 16)
        for act_bits in (self.softmax_bits, *_bits_of(self.act_rules)):
            if act_bits is not None:
                _check_bits("activations", act_bits, 16)

    def weight_for(self, path: str) -> QuantSpec:
        """Return the spec of the weight of the layer at `path`."""
        return replace(self.weight, bits=_last_match(self.weight_rules, self.weight.bits, path))

    def grouped(self, timesteps: Sequence[float], groups: int) -> "QuantPolicy":
        """Return the policy with a phase for each group of consecutive sampling steps, all with the bits of `act`.

        Args:
            timesteps: those that a sampler visits, in any order.
            groups: 2 or more, at most as many as there are different timesteps.

        Raises:
            ValueError: the policy has phases already, or leaves activations in floating point.
        """
        if self.act_phases:
            raise ValueError("a policy with act_phases cannot be divided into groups of steps: give one of the two")
        if self.act is None:
            raise ValueError("groups of steps are for activations, which this policy leaves in floating point")
        return self.by_step(dict.fromkeys(map(floor, timesteps), self.act.bits), groups)

    def by_step(self, bits: Mapping[int, int], groups: int = 1) -> "QuantPolicy":
        """Return the policy with these bits of activations at the timesteps of a sampler, in as few phases as possible.

        Args:
            bits: by timestep, 0 or more. Between two of them, the bits are those of the lower one.
            groups: consecutive timesteps are divided into so many groups besides, each with phases of its own.

        Raises:
            ValueError: the policy leaves activations in floating point, or bits are out of range.
        """
        if self.act is None:
            raise ValueError("bits by step are for activations, which this policy leaves in floating point")
        steps = sorted(bits)
        starts = {steps[i * len(steps) // groups] for i in range(1, groups)}
        firsts = [t for before, t in pairwise(steps) if bits[before] != bits[t] or t in starts]
        act = replace(self.act, bits=bits[steps[0]])
        return replace(self, act=act, act_phases=tuple((t, bits[t]) for t in firsts))

    @property
    def phases(self) -> range:
        """The numbers of the phases, in the order of their timesteps; 0 alone where `act_phases` is empty."""
        return range(1 + len(self.act_phases))

    def phase_of(self, t: float) -> int:
        """Return the number of the phase that timestep `t` is in; `t` need not be an integer."""
        return bisect_right([first for first, _ in self.act_phases], t)

    def timesteps_of(self, phase: int) -> str:
        """Return the timesteps of a phase in words, "0..599" or "from 600 on"."""
        firsts = [0, *(first for first, _ in self.act_phases)]
        return f"{firsts[phase]}..{firsts[phase + 1] - 1}" if phase + 1 < len(firsts) else f"from {firsts[phase]} on"

    def act_for(
        self, path: str, operand: str | None = None, *, softmax: bool = False, phase: int = 0
    ) -> QuantSpec | None:
        """Return the spec of an activation; None if it stays in floating point, as it does in all phases or in none.

        Args:
            path: of the layer whose input it is, or of the attention product.
            operand: its name, if it is an operand of a product.
            softmax: whether it is attention after its softmax, which has `softmax_bits` unless a rule matches.
            phase: number of the phase.
        """
        if self.act is None:
            return None
        names = [path] if operand is None else [path, f"{path}.{operand}"]
        of_phases = [self.act.bits, *(bits for _, bits in self.act_phases)]
        bits = _last_match(self.act_rules, self.softmax_bits if softmax else of_phases[phase], *names)
        return None if bits is None else replace(self.act, bits=bits)

    def check_rules(self, layers: Collection[str], operands: Collection[str]) -> None:
        """Check that every rule matches something of a network.

        Args:
            layers: paths of its layers.
            operands: `<path>` and `<path>.<operand>` of its attention products.

        Raises:
            ValueError: a pattern matches nothing; the message suggests one.
        """
        for rules, names in ((self.weight_rules, layers), (self.act_rules, [*layers, *operands])):
            for pattern, _ in rules:
                if not any(fnmatchcase(name, pattern) for name in names):
                    raise ValueError(
                        f"the pattern '{pattern}' matches no layer of the network: {_hint(pattern, names)}"
                    )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "QuantPolicy":
        """Rebuild the policy that `to_dict` described. Raises KeyError, TypeError or ValueError for anything else."""
        act = data["act"]
        return cls(
            weight=QuantSpec(**data["weight"]),
            act=None if act is None else QuantSpec(**act),
            softmax_bits=data["softmax_bits"],
            split=data["split"],
            weight_rules=_pairs(data.get("weight_rules", [])),
            act_rules=_pairs(data.get("act_rules", [])),
            act_phases=_pairs(data.get("act_phases", [])),
        )

    def to_dict(self) -> dict[str, Any]:
        """Describe the policy in plain JSON types, without rules or phases if it has none."""
        return {key: value for key, value in asdict(self).items() if value or key not in OPTIONAL}

    def without_activations(self) -> "QuantPolicy":
        """Return the policy with the same weights, and activations in floating point."""
        return replace(self, act=None, act_rules=(), act_phases=())


def _pairs(pairs: Iterable[Iterable[Any]]) -> tuple[Any, ...]:
    return tuple(tuple(pair) for pair in pairs)


def _check_order(phases: Sequence[ActPhase]) -> None:
    previous = 0
    for phase in phases:
        if not (isinstance(phase, tuple) and len(phase) == 2 and isinstance(phase[0], int) and phase[0] > previous):
            raise ValueError(
                f"a phase is its first timestep, an integer above {previous} here, and its bits, as in (600, 4), "
                f"not {phase!r}"
            )
        previous = phase[0]


def _check_bits(what: str, bits: object, most: int) -> None:
    if not (isinstance(bits, int) and 2 <= bits <= most):
        raise ValueError(f"{what} take 2..{most} bits, not {bits}")


def _bits_of(rules: Sequence[tuple[str, Bits]]) -> list[Bits]:
    for rule in rules:
        if not (isinstance(rule, tuple) and len(rule) == 2 and isinstance(rule[0], str)):
            raise ValueError(f"a rule is a pattern and its bits, as in ('model.conv_in', 8), not {rule!r}")
    return [bits for _, bits in rules]


def _last_match(rules: Sequence[tuple[str, Bits]], default: Bits, *names: str) -> Bits:
    """Return the bits of the last rule that matches one of the names."""
    matching = (bits for pattern, bits in reversed(rules) if any(fnmatchcase(name, pattern) for name in names))
    return next(matching, default)


def _hint(pattern: str, names: Collection[str]) -> str:
    """Suggest a pattern that matches some of the names."""
    for likely in (f"{pattern}.*", f"model.{pattern}", f"model.{pattern}.*"):
        if any(fnmatchcase(name, likely) for name in names):
            return f"did you mean {likely}?"
    return suggestion(pattern, names) or f"its layers have paths as {next(iter(names), None)}"
