"""Outputs of finished blocks, kept so that a forward to the next block need not compute them again.

Without the cache, B blocks cost about B forwards of the network over the calibration set; with it about one where
blocks are learned in the order in which a forward calls them, and more where they are not.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property, partial
from itertools import accumulate, chain, islice, pairwise
from typing import Any

import torch
from torch import nn

from qdiff.calibration.block_graph import BlockNode, cache_bytes_per_sample, cached_samples, sources_of, trace_blocks
from qdiff.calibration.data import CalibrationSet
from qdiff.calibration.partial_forward import block_output
from qdiff.calibration.phases import unmixed
from qdiff.calls import Call, Samples
from qdiff.quant_model import QuantModel

Outputs = dict[nn.Module, list[Samples]]  # by block, then by batch; an empty list once no later block depends on them


class PrefixCache:
    """The calibration set, with the outputs of finished blocks for as many samples as memory can hold.

    Args:
        model: in evaluation mode.
        pending: blocks that are still to be learned; `mark_done` takes one off.
        data: N samples.
        batch_size: samples per forward.
        memory: bytes for the cache and the captured tensors of one block.

    Attributes:
        cached: blocks that are done and need not be computed any more, in the order of the network.
        parts: the samples, divided so that those of a batch are in one phase; in the order of the batches.
        rows: the samples of each batch, by their numbers in that order.
    """

    def __init__(
        self, model: QuantModel, pending: Sequence[nn.Module], data: CalibrationSet, batch_size: int, memory: int
    ):
        self.model, self.data, self.batch_size = model, data, batch_size
        self.parts = unmixed(model, data)
        sizes = [len(rows) for part in self.parts for rows in torch.arange(len(part)).split(batch_size)]
        self.rows = [range(start, end) for start, end in pairwise(accumulate(sizes, initial=0))]
        self.pending = set(pending)
        self.memory, self.device = memory, next(model.parameters()).device
        self.cached: list[nn.Module] = []
        self.quantized: Outputs = {}
        self.original: Outputs = {}
        self.shapes: dict[nn.Module, Samples] = {}  # outputs for no sample

    @cached_property
    def nodes(self) -> list[BlockNode]:
        """The blocks in the order in which a forward calls them."""
        sample = next(self.data.batches(1)).to(self.device)
        return trace_blocks(self.model, [block.module for block in self.model.blocks()], sample)

    def node(self, module: nn.Module) -> BlockNode:
        """Return the node of a block."""
        return next(node for node in self.nodes if node.module is module)

    @cached_property
    def samples(self) -> int:
        """For how many samples, the first ones, outputs are kept; a batch that exceeds them is computed again."""
        return cached_samples(self.nodes, len(self.data), self.batch_size, self.memory)

    @property
    def max_bytes(self) -> int:
        """Upper bound of the bytes in the cache."""
        return self.samples * cache_bytes_per_sample(self.nodes)

    def mark_done(self, module: nn.Module) -> None:
        """Note that a block does not change any more."""
        self.pending.discard(module)

    def batches(self) -> Iterator[tuple[int, Call]]:
        """Yield numbered batches of the network's inputs, on its device."""
        batches = chain.from_iterable(part.batches(self.batch_size) for part in self.parts)
        for i, batch in enumerate(batches):
            yield i, batch.to(self.device)

    @contextmanager
    def recalling(self, module: nn.Module, batch: int, *, original: bool) -> Iterator[None]:
        """Make cached blocks return their kept outputs inside.

        Args:
            module: the block at which forwards inside end; only what it depends on has values.
            batch: number of the batch that forwards inside compute.
            original: whether in the full-precision network; else in the quantized one.
        """
        with self.model.full_precision() if original else nullcontext():
            rows = self.rows[batch]
            if rows.stop > self.samples:
                yield
                return
            kept, size = self.original if original else self.quantized, len(rows)
            end = next(i for i, node in enumerate(self.nodes) if node.module is module)
            needed = sources_of(self.nodes[len(self.cached) : end + 1])
            for cached in self.cached:
                recall = partial(self._recall, kept[cached][batch]) if cached in needed else None
                cached.forward = recall or partial(self._without_values, self.shapes[cached], size)
            try:
                yield
            finally:
                for cached in self.cached:
                    del cached.forward

    def _recall(self, output: Samples, *args: Any, **kwargs: Any) -> Any:
        return output.to(self.device, copy=True).tree  # a copy, because the network may change it in place

    def _without_values(self, output: Samples, size: int, *args: Any, **kwargs: Any) -> Any:
        return output.to(self.device).empty(size).tree

    @torch.no_grad()
    def extend(self) -> None:
        """Keep the outputs of the blocks that are done, up to the first one that is not."""
        for node in self.nodes[len(self.cached) :]:
            if node.module in self.pending or not self.samples:
                return
            self.quantized[node.module] = self._outputs(node, original=False)
            self.original[node.module] = self._outputs(node, original=True)
            self.shapes[node.module] = self.quantized[node.module][0].empty(0)
            self.cached.append(node.module)
            needed = sources_of(self.nodes[len(self.cached) :])
            for module in self.cached:
                if module not in needed:
                    self.quantized[module] = self.original[module] = []

    def _outputs(self, node: BlockNode, *, original: bool) -> list[Samples]:
        found = []
        whole = sum(rows.stop <= self.samples for rows in self.rows)
        for i, batch in islice(self.batches(), whole):
            with self.recalling(node.module, i, original=original):
                output = block_output(self.model, node.module, batch)
            found.append(output.with_constants_of(node.output).map(torch.Tensor.cpu))
        return found
