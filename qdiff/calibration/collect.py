"""Collecting calibration data: what the network is called with while it samples."""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor, nn

from qdiff.calibration.data import CalibrationSet, kept_steps
from qdiff.files.journal import Journal


class SamplerStep(Protocol):
    """What a sampler yields after each call of the network; of it only this is used."""

    index: int
    x_prev: Tensor


def collect(
    network: nn.Module,
    trajectory: Callable[[range], Iterable[SamplerStep]],
    steps: int,
    cali_st: int,
    cali_n: int,
    batch_size: int,
    journal: Journal,
    progress: Callable[[int], None] = lambda samples: None,
    rows: int = 1,
) -> CalibrationSet:
    """Sample `cali_n` images and keep what the network is given at `cali_st` of the steps (Q-Diffusion, section 3.2).

    Args:
        network: what the trajectory calls once per step, with positional tensors (N, ...).
        trajectory: image indices -> the steps of their sampling, first one first.
        steps: how many steps that are.
        cali_st, cali_n: steps kept, and images.
        batch_size: images at a time.
        journal: images that are done, batch by batch; those of an earlier run are taken from it.
        progress: called with the number of images of every step that is done.
        rows: how many rows of the network's batch belong to an image, 2 with guidance: first one row of each image,
            then the other one of each.

    Returns:
        cali_st * cali_n * rows samples, grouped by step, then by row, whatever the batch size.
    """
    kept = kept_steps(steps, cali_st)
    whole: dict[str, Tensor] = {}  # (steps, rows, images, ...)
    for start in range(0, cali_n, batch_size):
        images = range(start, min(start + batch_size, cali_n))
        unit = f"images-{images.start:06d}-{images.stop:06d}"
        found = journal.read(unit)
        if found:
            batch = found[0]
            progress(len(images) * (kept[-1] + 1))
        else:
            batch = _inputs_at(kept, network, trajectory(images), lambda: progress(len(images)))  # noqa: B023
            journal.write(unit, batch)
        for key, x in batch.items():
            part = x.unflatten(1, (rows, -1))
            if key not in whole:  # room for all, once, because they may take much of the memory
                whole[key] = part.new_empty(*part.shape[:2], cali_n, *part.shape[3:])
            whole[key][:, :, images.start : images.stop] = part
    return CalibrationSet(tuple(x.flatten(0, 2) for x in whole.values()))


def _inputs_at(
    kept: list[int], network: nn.Module, steps: Iterable[SamplerStep], progress: Callable[[], None]
) -> dict[str, Tensor]:
    """`input_0`, `input_1`, ... of the network at some of the steps, each (steps, N, ...), float32 where floating."""
    given: tuple[Tensor, ...] = ()
    found: list[tuple[Tensor, ...]] = []

    def note(module, args):
        nonlocal given
        given = args

    hook = network.register_forward_pre_hook(note)
    try:
        for step in islice(steps, kept[-1] + 1):
            if step.index in kept:
                found.append(tuple(_stored(x) for x in given))
            progress()
    finally:
        hook.remove()
    return {f"input_{i}": torch.stack(xs) for i, xs in enumerate(zip(*found))}


def _stored(x: Tensor) -> Tensor:
    x = x.detach().cpu()
    return x.float() if x.is_floating_point() else x.clone()
