"""Inputs and full-precision outputs of one block over the calibration set, within a memory budget."""

import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from qdiff.block_recon import Captured
from qdiff.calibration.partial_forward import block_inputs, block_output
from qdiff.calibration.prefix_cache import Replay
from qdiff.files.names import utf8_name


class Store:
    """Room for captured tensors: in memory up to a budget, beyond it in files that vanish with their tensors.

    Args:
        budget: bytes of memory.
        folder: on whose disk the files are; it must have the room (see `qdiff.calibration.plan`).
    """

    def __init__(self, budget: int, folder: Path):
        self.left = budget
        self.folder = folder

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor on the CPU. Raises OSError where the disk has no room for it."""
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


def capture(replay: Replay, block: nn.Module, store: Store) -> Captured:
    """Run the calibration set: inputs from the network quantized so far, targets from the FP network.

    Every sample counts, a last smaller batch included, and the network is left at the block.

    Args:
        replay: the calibration set on its way.
        block: a module that the network calls once per forward with positional tensors.
        store: where the result lives.
    """
    kept: list[Tensor] = []
    done, samples = 0, len(replay.data)
    replay.advance()
    with torch.no_grad():
        for i, batch in replay.batches():
            with replay.towards(block, i, original=False):
                found = block_inputs(block, lambda: replay.model(*batch))  # noqa: B023 - called at once
            with replay.towards(block, i, original=True):
                target = block_output(block, lambda: replay.model(*batch))  # noqa: B023
            tensors = (*found, target)
            kept = kept or [store.empty((samples, *x.shape[1:]), x.dtype) for x in tensors]
            for place, x in zip(kept, tensors):
                place[done : done + len(x)] = x.cpu()
            done += len(target)
    return Captured(tuple(kept[:-1]), kept[-1])
