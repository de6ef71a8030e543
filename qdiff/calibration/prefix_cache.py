"""Outputs of finished blocks, kept so that the calibration set reaches the next block without computing them again.

Without them, B blocks cost about B forwards of the network over the whole set; with them, about one where blocks are
learned in the order in which a forward comes to them, and more where they are not.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice

import torch
from torch import Tensor, nn

from qdiff.calibration.data import CalibrationSet
from qdiff.calibration.partial_forward import block_output
from qdiff.quant_model import QuantModel


@dataclass(frozen=True)
class Stop:
    """A block on the way through the network.

    Args:
        module: the block.
        sources: blocks whose outputs reach it through no other block.
        captured: bytes of its inputs and output, per sample.
        output: bytes of its output, per sample.
    """

    module: nn.Module
    sources: frozenset[nn.Module]
    captured: int
    output: int


def route(model: QuantModel, modules: Sequence[nn.Module], inputs: Sequence[Tensor]) -> list[Stop]:
    """The blocks in the order in which a forward comes to them.

    Each block's output is cut from its past and made a variable: those that a block's inputs have gradients by are its
    sources.

    Args:
        model: in evaluation mode.
        modules: the blocks; each is called once in a forward, with positional tensors.
        inputs: of the network; one sample is enough.

    Raises:
        ValueError: a forward comes to a block never, or more than once.
    """
    outputs: dict[nn.Module, Tensor] = {}
    stops: list[Stop] = []

    def after(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        moving = [x for x in args if x.requires_grad]
        total = sum(x.sum() for x in moving)
        by = torch.autograd.grad(total, list(outputs.values()), retain_graph=True, allow_unused=True) if moving else []
        sources = frozenset(source for source, gradient in zip(outputs, by) if gradient is not None)
        sizes = [x.numel() * x.element_size() // len(x) for x in (*args, output)]
        stops.append(Stop(module, sources, sum(sizes), sizes[-1]))
        outputs[module] = output.detach().requires_grad_(True)
        return outputs[module].clone()  # what requires gradients cannot be changed in place

    handles = [module.register_forward_hook(after) for module in modules]
    try:
        with torch.enable_grad(), model.full_precision():
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    reached = [stop.module for stop in stops]
    for module in modules:
        if reached.count(module) != 1:
            path = next(path for path, other in model.named_modules() if other is module)
            raise ValueError(f"the network calls {path} {reached.count(module)} times: a block must be called once")
    return stops


def _sources(stops: Sequence[Stop]) -> frozenset[nn.Module]:
    """Of any of these blocks."""
    return frozenset().union(*(stop.sources for stop in stops))


def kept_bytes(stops: Sequence[Stop]) -> int:
    """Most bytes per sample that replaying keeps: of blocks that are done the outputs that others still take.

    They are kept twice, from the quantized and from the full-precision network.
    """
    peak = 0
    for i in range(len(stops)):
        ahead = _sources(stops[i:])
        peak = max(peak, sum(stop.output for stop in stops[: i + 1] if stop.module in ahead or stop is stops[i]))
    return 2 * peak


def replayed_samples(stops: Sequence[Stop], samples: int, batch_size: int, memory: int) -> int:
    """Of how many samples outputs are kept: of as many whole batches as memory has room for beside a captured block.

    Args:
        stops: from `route`.
        samples: size of the calibration set.
        batch_size: samples per forward.
        memory: bytes.
    """
    room = memory - samples * max(stop.captured for stop in stops)
    batches = max(0, room) // (max(1, kept_bytes(stops)) * batch_size)
    return min(samples, batches * batch_size)


class Replay:
    """The calibration set on its way through the network, past blocks that do not change any more.

    Args:
        model: in evaluation mode.
        pending: blocks that are still to be learned; take those that are done off with `settle`.
        data: N samples.
        batch_size: samples per forward.
        memory: bytes for what is kept and for the captured tensors of one block.

    Attributes:
        passed: blocks whose outputs are kept, as long as others take them.
    """

    def __init__(
        self, model: QuantModel, pending: Sequence[nn.Module], data: CalibrationSet, batch_size: int, memory: int
    ):
        self.model, self.data, self.batch_size = model, data, batch_size
        self.pending = set(pending)
        self.memory, self.device = memory, next(model.parameters()).device
        self.passed: list[nn.Module] = []
        # The outputs of passed blocks, by batch, from the quantized and the full-precision network; None when used up
        self.quantized: dict[nn.Module, list[Tensor] | None] = {}
        self.original: dict[nn.Module, list[Tensor] | None] = {}
        self.shapes: dict[nn.Module, tuple[torch.Size, torch.dtype]] = {}

    @cached_property
    def stops(self) -> list[Stop]:
        """The blocks in the order in which a forward comes to them."""
        first = [x.to(self.device) for x in next(iter(self.data.batches(1)))]
        return route(self.model, [block.module for block in self.model.blocks()], first)

    @cached_property
    def samples(self) -> int:
        """Of how many samples outputs are kept."""
        return replayed_samples(self.stops, len(self.data), self.batch_size, self.memory)

    @property
    def bytes(self) -> int:
        """What is kept takes at most so many."""
        return self.samples * kept_bytes(self.stops)

    def settle(self, module: nn.Module) -> None:
        """This block does not change any more."""
        self.pending.discard(module)

    def batches(self) -> Iterator[tuple[int, list[Tensor]]]:
        """Numbered batches of the network's inputs, on its device."""
        for i, batch in enumerate(self.data.batches(self.batch_size)):
            yield i, [x.to(self.device) for x in batch]

    @contextmanager
    def towards(self, module: nn.Module, batch: int, *, original: bool) -> Iterator[None]:
        """Inside, blocks that have been passed return for this batch what was kept, in the network that is meant."""
        with self.model.full_precision() if original else nullcontext():
            if batch * self.batch_size >= self.samples:
                yield
                return
            kept = self.original if original else self.quantized
            last = next(i for i, stop in enumerate(self.stops) if stop.module is module)
            taken = _sources(self.stops[len(self.passed) : last + 1])
            for passed in self.passed:
                passed.forward = partial(self._recall, passed, kept[passed][batch] if passed in taken else None)
            try:
                yield
            finally:
                for passed in self.passed:
                    del passed.forward

    def _recall(self, module: nn.Module, output: Tensor | None, *args: Tensor) -> Tensor:
        """What was kept; where nothing that counts depends on it, any tensor of the shape."""
        if output is not None:
            return output.to(self.device, copy=True)  # the network may change it in place
        shape, dtype = self.shapes[module]
        return torch.empty((len(args[0]), *shape), dtype=dtype, device=self.device)

    @torch.no_grad()
    def advance(self) -> None:
        """Pass the blocks that are done, up to the first one that is not."""
        for stop in self.stops[len(self.passed) :]:
            if stop.module in self.pending or not self.samples:
                return
            self.quantized[stop.module] = self._outputs(stop.module, original=False)
            self.original[stop.module] = self._outputs(stop.module, original=True)
            example = self.quantized[stop.module][0]
            self.shapes[stop.module] = example.shape[1:], example.dtype
            self.passed.append(stop.module)
            ahead = _sources(self.stops[len(self.passed) :])
            for module in self.passed:
                if module not in ahead:
                    self.quantized[module] = self.original[module] = None

    def _outputs(self, module: nn.Module, *, original: bool) -> list[Tensor]:
        found = []
        for i, batch in islice(self.batches(), -(-self.samples // self.batch_size)):
            with self.towards(module, i, original=original):
                found.append(block_output(module, lambda: self.model(*batch)).cpu())  # noqa: B023 - called at once
        return found
