"""Observers: collect an activation's range, then act as its quantizer."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from qdiff.functional import at_least_float32
from qdiff.policy import QuantSpec
from qdiff.quant_layer import UniformAffineQuantizer
from qdiff.ranges import RowSummary, joined, summarize

MOST_VALUES = 2**22  # of all slices of an activation, for the range search
THINNER = 3  # odd, as strides are in `qdiff.ranges`


class TwoPass:
    """Repeats sliced attention so that each operand's range covers all slices, not just the first.

    The first pass collects the operands that come from outside (query, key, values), the second the attention weights,
    computed from operands that are quantized by then; the last one, with every range known, gives the output. Once
    nothing is left to collect, a single pass is enough. An instance is the argument of `Adapter.repeat_slices`: calling
    it yields once for each pass.

    Attributes:
        active: whether a sliced attention is being computed.
        frozen: observers that have their range for this attention.
        collecting: observers that collect in the current pass.
    """

    def __init__(self):
        self.active = False
        self.frozen: set[Observer] = set()
        self.collecting: set[Observer] = set()

    def __call__(self) -> Iterator[None]:
        self.active = True
        try:
            yield
            while self.collecting:
                for observer in self.collecting:
                    observer.freeze()
                self.frozen |= self.collecting
                self.collecting.clear()
                yield
        finally:
            self.active = False
            self.collecting.clear()
            self.frozen.clear()

    def collects(self, observer: "Observer") -> bool:
        """Tell whether `observer` collects in this pass; one of the second pass does once no other one has to."""
        if not observer.second_pass or self.collecting <= {observer}:
            self.collecting.add(observer)
        return observer in self.collecting


class Observer(nn.Module):
    """Finds the range of an activation on its first tensor, and quantizes from then on, that tensor included.

    So ranges are found in the order of the network, each on inputs that are quantized already.

    Args:
        spec: how the activation will be quantized.
        two_pass: of the network's attention, whose operands may come in slices.
        second_pass: whether the activation is computed from operands that are observed too (attention weights).
    """

    def __init__(self, spec: QuantSpec, two_pass: TwoPass | None = None, second_pass: bool = False):
        super().__init__()
        self.spec, self.second_pass = spec, second_pass
        self.two_pass = two_pass or TwoPass()
        self.quantizer: UniformAffineQuantizer | None = None  # once the range is known
        self.collected: list[RowSummary] = []
        self.stride = 1

    @property
    def has_to_collect(self) -> bool:
        """Whether the current tensor still counts for the range."""
        return self.quantizer is None

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` quantized, or unchanged in a pass over slices that still collects; its shape and dtype."""
        if self.has_to_collect:
            if self.two_pass.active:
                if self.two_pass.collects(self):
                    self.collect(x)
                return x
            self.collect(x)
            self.freeze()
        assert self.quantizer is not None  # `freeze` has made it
        return self.quantizer(x)

    def collect(self, x: Tensor) -> None:
        """Keep what the range search needs of a tensor or of a slice, any shape."""
        low, high, values = summarize(at_least_float32(x.detach()).reshape(1, -1))
        self.collected.append(RowSummary(low, high, self.thin(values, self.stride)))
        if sum(part.values.numel() for part in self.collected) > MOST_VALUES:
            self.stride *= THINNER
            self.collected = [part._replace(values=self.thin(part.values, THINNER)) for part in self.collected]

    def thin(self, values: Tensor, stride: int) -> Tensor:
        """Return every `stride`-th of (1, n) values; a copy, because a view would keep all of them in memory."""
        return values[:, ::stride].clone()

    def freeze(self) -> None:
        """Turn what was collected into the quantizer."""
        self.quantizer = self.fit(joined(self.collected))
        self.collected = []

    def fit(self, collected: RowSummary) -> UniformAffineQuantizer:
        """Return the quantizer for the collected rows."""
        return UniformAffineQuantizer.fit_summary(collected, self.spec)


class RunningObserver(Observer):
    """Range from exponential averages of minimum and maximum over many tensors (`--running_stat`).

    A tensor that comes in slices counts once, as a whole. The range contains zero, whatever search `spec` names.
    """

    MOMENTUM = 0.95

    def __init__(self, spec: QuantSpec, two_pass: TwoPass | None = None, second_pass: bool = False):
        super().__init__(minmax(spec), two_pass, second_pass)
        self.average: Tensor | None = None  # (2,): minimum, maximum

    def thin(self, values: Tensor, stride: int) -> Tensor:
        """Keep no values, shape (1, 0); the extremes are enough."""
        return values[:, :0]

    @property
    def has_to_collect(self) -> bool:
        """Whether the current tensor is not in the averages yet."""
        return self not in self.two_pass.frozen

    def fit(self, collected: RowSummary) -> UniformAffineQuantizer:
        """Update the averages with the collected rows; return the quantizer for them."""
        now = torch.cat([collected.low, collected.high])
        if self.average is None:
            self.average = now
        self.average = self.MOMENTUM * self.average + (1 - self.MOMENTUM) * now
        return UniformAffineQuantizer.fit(self.average, self.spec)


def minmax(spec: QuantSpec) -> QuantSpec:
    """Return the spec with the range taken from the extremes."""
    return replace(spec, range_search="minmax")
