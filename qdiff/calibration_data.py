"""Calibration data: inputs of the network, taken from its own sampling trajectory uniformly over the timesteps."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from qdiff.errors import UserError
from qdiff.files.atomic import replacing
from qdiff.files.pickles import load_pickle


class SamplerStep(Protocol):
    """What a sampler yields per step; of it only these are used."""

    index: int
    t: int
    x_t: Tensor


@dataclass(frozen=True)
class CalibrationSet:
    """Inputs of the network, one tuple element per argument: x_t (N, C, H, W), t (N,), and what else it takes.

    Raises:
        ValueError: no sample, or arguments of different lengths.
    """

    inputs: tuple[Tensor, ...]

    def __post_init__(self):
        if not self.inputs or len({len(x) for x in self.inputs}) != 1 or not len(self.inputs[0]):
            raise ValueError("a calibration set needs at least one sample, and as many of each argument")

    def __len__(self) -> int:
        return len(self.inputs[0])

    def batches(self, size: int) -> Iterator[tuple[Tensor, ...]]:
        """All samples in order, `size` at a time; the last batch may be smaller."""
        return zip(*(x.split(size) for x in self.inputs))

    def draw(self, n: int, generator: torch.Generator) -> "CalibrationSet":
        """`n` samples (all, if there are fewer) without repetition."""
        chosen = torch.randperm(len(self), generator=generator)[:n]
        return CalibrationSet(tuple(x[chosen] for x in self.inputs))

    def digest(self) -> str:
        """sha256 of every value; equal data have equal digests."""
        sha = hashlib.sha256()
        for x in self.inputs:
            sha.update(f"{tuple(x.shape)}{x.dtype}".encode())
            sha.update(x.contiguous().numpy().tobytes())
        return sha.hexdigest()

    def save(self, path: Path) -> None:
        """Write as safetensors, whole or not at all."""
        with replacing(path) as partial:
            save_file({f"input_{i}": x.contiguous() for i, x in enumerate(self.inputs)}, partial)


def kept_steps(steps: int, cali_st: int) -> range:
    """Indices of the sampling steps whose inputs are kept: every (steps // cali_st)-th one.

    Raises:
        UserError: more calibration timesteps than sampling steps.
    """
    if cali_st > steps:
        raise UserError(
            f"--cali_st {cali_st} asks for more timesteps than the {steps} steps: lower it or raise the steps"
        )
    every = steps // cali_st
    return range(0, every * cali_st, every)


def collect(
    trajectory: Callable[[range], Iterable[SamplerStep]],
    steps: int,
    cali_st: int,
    cali_n: int,
    batch_size: int,
    progress: Callable[[int], None] = lambda samples: None,
) -> CalibrationSet:
    """Sample `cali_n` images and keep the network's inputs at `cali_st` of the timesteps (Q-Diffusion, section 3.2).

    Args:
        trajectory: image indices -> the steps of their sampling, first one first.
        steps: how many steps that are.
        cali_st, cali_n: timesteps kept, and samples at each.
        batch_size: images at a time.
        progress: called with the number of samples of every step that is done.

    Returns:
        cali_st * cali_n samples, grouped by timestep.
    """
    kept = kept_steps(steps, cali_st)
    xs: list[list[Tensor]] = [[] for _ in kept]
    ts: list[int] = [0] * len(kept)
    for start in range(0, cali_n, batch_size):
        images = range(start, min(start + batch_size, cali_n))
        for step in islice(trajectory(images), kept[-1] + 1):
            if step.index in kept:
                xs[kept.index(step.index)].append(step.x_t.detach().float().cpu())
                ts[kept.index(step.index)] = step.t
            progress(len(images))
    return _grouped([torch.cat(x) for x in xs], [torch.full((cali_n,), t, dtype=torch.long) for t in ts])


def read_calibration_data(path: Path, cali_st: int, cali_n: int) -> CalibrationSet:
    """Data that `save` wrote, or the original's: a pickled dict `xs`, `ts` of per-step tensors `[step][sample, ...]`.

    Of the original's, every (steps // cali_st)-th step and the first `cali_n` samples of each are taken.

    Raises:
        UserError: not readable, not of either layout, or fewer samples than asked for.
    """
    try:
        stored = load_file(path)
    except (SafetensorError, OSError):
        return _from_original(path, cali_st, cali_n)
    try:
        return CalibrationSet(tuple(stored[f"input_{i}"] for i in range(len(stored))))
    except (KeyError, ValueError):
        raise UserError(f"{path} holds no calibration data: leave out --cali_data_path to collect them") from None


def _from_original(path: Path, cali_st: int, cali_n: int) -> CalibrationSet:
    stored = load_pickle(path)
    if not isinstance(stored, dict) or not {"xs", "ts"} <= stored.keys() or len(stored["xs"]) != len(stored["ts"]):
        raise UserError(
            f"{path} has no lists 'xs' and 'ts' of equal length: leave out --cali_data_path to collect them"
        )
    steps = len(stored["xs"])
    if steps < cali_st:
        raise UserError(f"{path} has {steps} timesteps, --cali_st asks for {cali_st}: lower it")
    xs, ts = ([stored[name][i] for i in kept_steps(steps, cali_st)] for name in ("xs", "ts"))
    available = min(len(x) for x in xs)
    if available < cali_n:
        raise UserError(f"{path} has {available} samples per timestep, --cali_n asks for {cali_n}: lower it")
    return _grouped([x[:cali_n].float() for x in xs], [t[:cali_n].long() for t in ts])


def _grouped(xs: list[Tensor], ts: list[Tensor]) -> CalibrationSet:
    return CalibrationSet((torch.cat(xs), torch.cat(ts)))
