"""Calibration data: inputs of the network at timesteps spread uniformly over its sampling trajectory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from qdiff.errors import UserError
from qdiff.files.atomic import replacing
from qdiff.files.digest import inputs_digest
from qdiff.files.formats import format_of
from qdiff.files.names import utf8_name
from qdiff.files.pickles import load_pickle


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

    def drawn(self, n: int, generator: torch.Generator, size: int) -> Iterator[tuple[Tensor, ...]]:
        """`n` samples (all, if there are fewer) without repetition, in random order, `size` at a time."""
        for chosen in torch.randperm(len(self), generator=generator)[:n].split(size):
            yield tuple(x[chosen] for x in self.inputs)

    def digest(self) -> str:
        """sha256 of every value; equal data have equal digests."""
        return inputs_digest(self.inputs)

    def save(self, path: Path) -> None:
        """Write as safetensors, whole or not at all."""
        with replacing(path) as partial:
            save_file({f"input_{i}": x.contiguous() for i, x in enumerate(self.inputs)}, partial)


def kept_steps(steps: int, cali_st: int) -> list[int]:
    """Indices of the `cali_st` sampling steps whose inputs are kept, over the whole trajectory.

    Where `cali_st` divides `steps`, that is every (steps // cali_st)-th one.

    Raises:
        UserError: more calibration timesteps than sampling steps.
    """
    if cali_st > steps:
        raise UserError(
            f"--cali_st {cali_st} asks for more timesteps than the {steps} steps: lower it or raise the steps"
        )
    return [i * steps // cali_st for i in range(cali_st)]


def read_calibration_data(
    path: Path, cali_st: int, cali_n: int, rows: int = 1, conditions: bool = False
) -> CalibrationSet:
    """Data that `save` wrote, or the original's: a pickled dict `xs`, `ts` of per-step tensors `[step][sample, ...]`.

    Ours are taken as they are; of the original's, the steps of `kept_steps` and the first `cali_n` samples of each.
    Its conditions are `cs` and, for guidance, `ucs`.

    Args:
        path: the file.
        cali_st, cali_n: timesteps, and samples of each.
        rows: 2 where every sample counts twice, without and with its condition, else 1.
        conditions: the network takes a condition.

    Raises:
        UserError: not readable, not of either layout, or not as many samples as asked for.
    """
    if format_of(path) != "safetensors":
        return _from_original(path, cali_st, cali_n, ("ucs", "cs")[-rows:] if conditions else ())
    try:
        with utf8_name(path) as name:
            stored = load_file(name)
        data = CalibrationSet(tuple(stored[f"input_{i}"] for i in range(len(stored))))
    except (SafetensorError, KeyError, ValueError):
        raise UserError(
            f"'{path}' holds no calibration data: give data, or leave out --cali_data_path to collect them"
        ) from None
    if len(data) != cali_st * cali_n * rows:
        guided = ", with guidance," if rows > 1 else ""
        raise UserError(
            f"'{path}' holds {len(data)} samples, --cali_st {cali_st} and --cali_n {cali_n}{guided} ask for "
            f"{cali_st * cali_n * rows}: give the numbers that it was collected with"
        )
    return data


def _from_original(path: Path, cali_st: int, cali_n: int, conditions: Sequence[str]) -> CalibrationSet:
    """Of every kept step, the samples once for each of the `conditions`, or once without any."""
    names = ("xs", "ts", *conditions)
    stored = _per_step(path, names)
    steps, available = len(stored["xs"]), min(len(x) for name in names for x in stored[name])
    if steps < cali_st:
        raise UserError(f"'{path}' has {steps} timesteps, --cali_st asks for {cali_st}: lower it")
    if available < cali_n:
        raise UserError(f"'{path}' has {available} samples per timestep, --cali_n asks for {cali_n}: lower it")
    arguments = [("xs", "ts", condition) for condition in conditions] or [("xs", "ts")]
    groups = [[stored[name][i][:cali_n] for name in names] for i in kept_steps(steps, cali_st) for names in arguments]
    return CalibrationSet(tuple(x.float() if x.is_floating_point() else x for x in map(torch.cat, zip(*groups))))


def _per_step(path: Path, names: Sequence[str]) -> dict[str, list[Tensor]]:
    """The original's lists by name, each with a tensor for every timestep."""
    try:
        content = dict(load_pickle(path))
        stored = {name: list(content[name]) for name in names}
        whole = len({len(xs) for xs in stored.values()}) == 1 and len(stored["xs"]) > 0
        whole = whole and all(isinstance(x, Tensor) for xs in stored.values() for x in xs)
        whole = whole and all(len({x.shape[1:] for x in xs}) == 1 for xs in stored.values())
        [len(x) for xs in stored.values() for x in xs]  # a tensor without dimensions has no length
    except (TypeError, KeyError, ValueError):  # what a pickle of something else leads to
        whole = False
    if not whole:
        wanted = " and ".join([", ".join(map(repr, names[:-1])), repr(names[-1])])
        raise UserError(
            f"'{path}' has no lists {wanted} with a tensor for each timestep: give calibration data, or leave "
            "out --cali_data_path to collect them"
        )
    return stored
