"""Observers: they look at an activation until its range is known, and quantize it from then on."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from qdiff.functional import at_least_float32
from qdiff.policy import QuantSpec
from qdiff.quant_layer import UniformAffineQuantizer
from qdiff.ranges import RowSummary, joined, summarize

MOST_VALUES = 2**22  # of all slices of an activation, for the search
THINNER = 3  # odd, as strides are in `qdiff.ranges`


class Rehearsal:
    """Has the slices of attention come by until each operand has its range: that of all slices, not of the first.

    A call gives the times that the slices are to be gone through, for `Adapter.rehearsed`: once for the operands that
    come from outside, then, with those quantized, for the attention weights. What the slices give counts when nobody
    has looked any more.
    """

    def __init__(self):
        self.going_on = False
        self.settled: set[Observer] = set()
        self.looking: set[Observer] = set()

    def __call__(self) -> Iterator[None]:
        self.going_on = True
        try:
            yield
            while self.looking:
                for observer in self.looking:
                    observer.settle()
                self.settled |= self.looking
                self.looking.clear()
                yield
        finally:
            self.going_on = False
            self.looking.clear()
            self.settled.clear()

    def has_turn(self, observer: "Observer") -> bool:
        """Whether it is this one's time to look."""
        if not observer.derived or self.looking <= {observer}:
            self.looking.add(observer)
        return observer in self.looking


class Observer(nn.Module):
    """Finds the range of an activation on the first tensor that it sees, and quantizes from then on.

    So ranges are found in the order of the network, each on inputs that are quantized already.

    Args:
        spec: how it will be quantized.
        rehearsal: of the network's attention, where the tensor comes in slices.
        derived: whether there it is computed from operands that are observed too.
    """

    def __init__(self, spec: QuantSpec, rehearsal: Rehearsal | None = None, derived: bool = False):
        super().__init__()
        self.spec, self.derived = spec, derived
        self.rehearsal = rehearsal or Rehearsal()
        self.found: UniformAffineQuantizer | None = None
        self.seen: list[RowSummary] = []
        self.stride = 1

    @property
    def has_to_look(self) -> bool:
        """Whether its range is yet to be found."""
        return self.found is None

    def forward(self, x: Tensor) -> Tensor:
        """`x` quantized with the range known by now; as it is, while a rehearsal looks for that."""
        if self.has_to_look:
            if self.rehearsal.going_on:
                if self.rehearsal.has_turn(self):
                    self.look(x)
                return x
            self.look(x)
            self.settle()
        return self.found(x)

    def look(self, x: Tensor) -> None:
        """Remember what the search needs of a tensor, or of a slice."""
        low, high, values = summarize(at_least_float32(x.detach()).reshape(1, -1))
        self.seen.append(RowSummary(low, high, self.some(values, self.stride)))
        if sum(part.values.numel() for part in self.seen) > MOST_VALUES:
            self.stride *= THINNER
            self.seen = [part._replace(values=self.some(part.values, THINNER)) for part in self.seen]

    def some(self, values: Tensor, stride: int) -> Tensor:
        """Values that the search is to have beside the extremes: a copy, because a view would keep all of them."""
        return values[:, ::stride].clone()

    def settle(self) -> None:
        """Find the range in what was looked at."""
        self.found = self.fit(joined(self.seen))
        self.seen, self.stride = [], 1

    def fit(self, seen: RowSummary) -> UniformAffineQuantizer:
        """The quantizer for it."""
        return UniformAffineQuantizer.fit_summary(seen, self.spec)


class RunningObserver(Observer):
    """Minimum and maximum as exponential averages over many tensors (`--running_stat`), each looked at whole."""

    MOMENTUM = 0.95

    def __init__(self, spec: QuantSpec, rehearsal: Rehearsal | None = None, derived: bool = False):
        super().__init__(minmax(spec), rehearsal, derived)
        self.average: Tensor | None = None

    def some(self, values: Tensor, stride: int) -> Tensor:
        """None."""
        return values[:, :0]

    @property
    def has_to_look(self) -> bool:
        """Whether this tensor is not in the averages yet."""
        return self not in self.rehearsal.settled

    def fit(self, seen: RowSummary) -> UniformAffineQuantizer:
        """With the averages up to and including what was seen."""
        now = torch.cat([seen.low, seen.high])
        if self.average is None:
            self.average = now
        self.average = self.MOMENTUM * self.average + (1 - self.MOMENTUM) * now
        return UniformAffineQuantizer.fit(self.average, self.spec)


def minmax(spec: QuantSpec) -> QuantSpec:
    """The same spec with the range taken from the extremes."""
    return replace(spec, range_search="minmax")
