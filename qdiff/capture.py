"""Inputs and full-precision outputs of one block over the calibration set, within a memory budget."""

import os
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from qdiff.calibration_data import CalibrationSet
from qdiff.quant_model import QuantModel


class _Reached(Exception):
    """The block has been reached: what comes after it need not be computed."""


@contextmanager
def _stopping(handle):
    try:
        yield
    except _Reached:
        pass
    finally:
        handle.remove()


def block_inputs(block: nn.Module, run: Callable[[], object]) -> tuple[Tensor, ...]:
    """The positional arguments that `block` gets within `run()`, which is cut short there."""
    seen: list[tuple[Tensor, ...]] = []

    def hook(module, args):
        seen.append(tuple(x.detach() for x in args))
        raise _Reached

    with _stopping(block.register_forward_pre_hook(hook)):
        run()
    return seen[0]


def block_output(block: nn.Module, run: Callable[[], object]) -> Tensor:
    """What `block` returns within `run()`, which is cut short there."""
    seen: list[Tensor] = []

    def hook(module, args, output):
        seen.append(output.detach())
        raise _Reached

    with _stopping(block.register_forward_hook(hook)):
        run()
    return seen[0]


class Store:
    """Room for captured tensors: in memory up to a budget, beyond it in files that vanish with their tensors.

    Args:
        budget: bytes of memory.
        folder: on whose disk the files are; it must have the room (see `qdiff.planning`).
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
        with tempfile.NamedTemporaryFile(prefix="captured-", dir=self.folder) as file:
            if hasattr(os, "posix_fallocate"):  # a disk that fills up later would kill the process (SIGBUS)
                os.posix_fallocate(file.fileno(), 0, size)
            return torch.from_file(file.name, shared=True, size=count, dtype=dtype).view(shape)


@dataclass(frozen=True)
class Captured:
    """What reconstruction of a block learns from: its inputs, one tensor (N, ...) per argument, and its FP output."""

    inputs: tuple[Tensor, ...]
    target: Tensor

    def __len__(self) -> int:
        return len(self.target)


def capture(model: QuantModel, block: nn.Module, data: CalibrationSet, batch_size: int, store: Store) -> Captured:
    """Run the calibration set: inputs from the network quantized so far, targets from the FP network.

    Every sample counts, a last batch smaller than `batch_size` included, and the network is left at the block.

    Args:
        model: in evaluation mode; its parameters' device is used.
        block: a module that the network calls once per forward with positional tensors.
        data: N samples.
        batch_size: samples per forward.
        store: where the result lives.
    """
    device = next(model.parameters()).device
    kept: list[Tensor] = []
    done = 0
    with torch.no_grad():
        for cpu_batch in data.batches(batch_size):
            batch = [x.to(device) for x in cpu_batch]
            found = block_inputs(block, lambda: model(*batch))  # noqa: B023 - called at once
            with model.full_precision():
                target = block_output(block, lambda: model(*batch))  # noqa: B023
            tensors = (*found, target)
            kept = kept or [store.empty((len(data), *x.shape[1:]), x.dtype) for x in tensors]
            for place, x in zip(kept, tensors):
                place[done : done + len(x)] = x.cpu()
            done += len(target)
    return Captured(tuple(kept[:-1]), kept[-1])
