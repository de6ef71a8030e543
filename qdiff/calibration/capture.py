"""Inputs and full-precision outputs of one block over the calibration set, within a memory budget."""

import os
import tempfile
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from qdiff.block_recon import Captured
from qdiff.calibration.block_graph import path_of
from qdiff.calibration.partial_forward import block_call, block_output
from qdiff.calibration.prefix_cache import PrefixCache
from qdiff.calls import BatchMismatch, Call, S, Samples
from qdiff.files.names import utf8_name


class Store:
    """Allocates captured tensors: in memory up to a budget, beyond it in files that vanish with their tensors.

    Args:
        budget: bytes of memory.
        folder: where the files are; its disk must have room for them (see `qdiff.calibration.plan`).
    """

    def __init__(self, budget: int, folder: Path):
        self.left = budget
        self.folder = folder

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return an uninitialised tensor of this shape on the CPU. Raises OSError if the disk has no room for it."""
        count = torch.Size(shape).numel()
        size = count * dtype.itemsize
        if size <= self.left:
            self.left -= size
            return torch.empty(shape, dtype=dtype)
        # The name is gone once the file is mapped, so not even a killed process leaves anything behind.
        with tempfile.NamedTemporaryFile(prefix="captured-", dir=self.folder) as file, utf8_name(file.name) as name:
            if hasattr(os, "posix_fallocate"):  # a disk that fills up later would kill the process (SIGBUS)
                os.posix_fallocate(file.fileno(), 0, size)
            return torch.from_file(str(name), shared=True, size=count, dtype=dtype).view(shape)

    def empty_like(self, batch: S, samples: int) -> S:
        """Return uninitialised tensors for so many samples as of a batch."""
        return batch.map(lambda x: self.empty((samples, *x.shape[1:]), x.dtype))


def capture(cache: PrefixCache, block: nn.Module, store: Store) -> Captured:
    """Run the calibration set up to a block: inputs from the network quantized so far, targets from the FP network.

    All samples are used, including a smaller last batch, phase by phase where activations are quantized by phase.

    Args:
        cache: the calibration set, and the outputs of blocks that are done.
        block: a module that the network calls once per forward.
        store: where the result is allocated.

    Raises:
        ValueError: the batches differ in what must be the same for all samples.
    """
    return _captured(cache, block, store, block_output, cache.node(block).output)


def capture_inputs(cache: PrefixCache, block: nn.Module, store: Store) -> Captured[Call]:
    """Run the calibration set up to a block: its arguments in the network quantized so far and, as target, in FP.

    Args, Raises:
        as for `capture`.
    """
    return _captured(cache, block, store, block_call, cache.node(block).call)


def _captured(
    cache: PrefixCache, block: nn.Module, store: Store, target: Callable[..., S], target_form: Samples
) -> Captured[S]:
    cache.extend()
    node, samples = cache.node(block), len(cache.data)
    with torch.no_grad():
        batches = _recorded(cache, block, target)
        first = next(batches)
        inputs = store.empty_like(first[0].with_constants_of(node.call), samples)
        targets = store.empty_like(first[1].with_constants_of(target_form), samples)
        done = 0
        try:
            for call, wanted in chain([first], batches):
                _put(inputs, done, call)
                _put(targets, done, wanted)
                done += len(call)
        except BatchMismatch as error:
            raise ValueError(f"{path_of(cache.model, block)} cannot be calibrated: {error}") from None
    return Captured(inputs, targets, tuple(map(len, cache.parts)) if len(cache.parts) > 1 else ())


def _recorded(cache: PrefixCache, block: nn.Module, target: Callable[..., S]) -> Iterator[tuple[Call, S]]:
    """Yield by batch the block's call in the quantized network, and its target from the full-precision one."""
    for i, batch in cache.batches():
        with cache.recalling(block, i, original=False):
            call = block_call(cache.model, block, batch)
        with cache.recalling(block, i, original=True):
            wanted = target(cache.model, block, batch)
        yield call, wanted


def _put(place: Samples, start: int, batch: Samples) -> None:
    for into, x in zip(place.tensors, batch.like(place).tensors):
        into[start : start + len(x)] = x.cpu()
