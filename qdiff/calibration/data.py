"""Calibration data: inputs of the network at timesteps spread uniformly over its sampling trajectory."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from qdiff.calibration.argument_names import arguments, named_arguments
from qdiff.calibration.original_data import read_original
from qdiff.calls import Call
from qdiff.errors import UserError
from qdiff.files.atomic import replacing
from qdiff.files.digest import digest, tensor_bytes
from qdiff.files.formats import format_of
from qdiff.files.names import utf8_name

PREFIX = "input_"  # of the names of tensors in a file


@dataclass(frozen=True)
class CalibrationSet:
    """Inputs of the network for N samples.

    A file holds them as safetensors: positional argument 0 is the tensor `input_0`, keyword argument y is `input_y`, a
    tensor within lists or dicts has a name such as `input_added.ids`. Arguments that are no tensors are a JSON object
    `constants` in the file's metadata, by the same names without `input_`; it is absent where there are none.

    Args:
        inputs: positional arguments: x_t (N, C, H, W), t (N,), and what else the network takes.
        keywords: keyword arguments.

    Raises:
        ValueError: no sample, tensors of different lengths, or an argument that JSON cannot hold.
    """

    inputs: tuple[Any, ...]
    keywords: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        lengths = {name: len(x) if x.ndim else 0 for name, x in self.named[0].items()}
        if len({*lengths.values()}) != 1 or 0 in lengths.values():
            raise ValueError(
                f"a calibration set needs at least one sample, and as many of each argument: it has {lengths}"
            )

    @cached_property
    def call(self) -> Call:
        """The arguments of the network for all samples."""
        return Call(self.inputs, self.keywords)

    @cached_property
    def named(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors (N, ...) and constants, by name."""
        return named_arguments(self.inputs, self.keywords)

    @classmethod
    def from_named(cls, tensors: Mapping[str, Tensor], constants: Mapping[str, Any]) -> "CalibrationSet":
        """Return the set with these arguments, tensors (N, ...). Raises ValueError for names of no call."""
        return cls(*arguments({**tensors, **constants}))

    def __len__(self) -> int:
        return len(self.call)

    def at(self, rows: Tensor) -> "CalibrationSet":
        """Return some of the samples, by their numbers (n,), n >= 1, ascending; a view if they follow one another."""
        start, end = int(rows[0]), int(rows[-1]) + 1
        call = self.call[slice(start, end) if end - start == len(rows) else rows]
        return CalibrationSet(call.args, call.kwargs)

    def batches(self, size: int) -> Iterator[Call]:
        """Yield all samples in order, `size` at a time; the last batch may be smaller."""
        return self.call.batches(size)

    def drawn(self, n: int, generator: torch.Generator, size: int) -> Iterator[Call]:
        """Yield `n` samples (all, if there are fewer) without repetition, in random order, `size` at a time."""
        for chosen in torch.randperm(len(self), generator=generator)[:n].split(size):
            yield self.call[chosen]

    def digest(self) -> str:
        """Return a sha256 of all values; equal data have equal digests."""
        tensors, constants = self.named
        named = [("" if name.isdigit() else name, x) for name, x in tensors.items()]
        parts = [part for name, x in named for part in (f"{name}{tuple(x.shape)}{x.dtype}".encode(), tensor_bytes(x))]
        return digest([*parts, *([json.dumps(constants).encode()] if constants else [])])

    def save(self, path: Path) -> None:
        """Write a safetensors file, whole or not at all."""
        tensors, constants = self.named
        metadata = {"constants": json.dumps(constants)} if constants else None
        with replacing(path) as partial:
            save_file({f"{PREFIX}{name}": x.contiguous() for name, x in tensors.items()}, partial, metadata)


def read_calibration_data(
    path: Path, cali_st: int, cali_n: int, rows: int = 1, conditions: bool = False
) -> CalibrationSet:
    """Read a file that `CalibrationSet.save` wrote, or one of the original code (see `read_original`).

    Our own is taken whole; of the original's, the steps of `kept_steps` and the first `cali_n` samples of each.

    Args:
        path: the file.
        cali_st, cali_n: timesteps, and samples of each.
        rows: 2 where every sample counts twice, without and with its condition, else 1.
        conditions: whether the network takes a condition.

    Raises:
        UserError: not readable, not of either layout, or not as many samples as asked for.
    """
    if format_of(path) != "safetensors":
        names = ("ucs", "cs")[-rows:] if conditions else ()
        return CalibrationSet(read_original(path, cali_st, cali_n, names))
    data = read_collected_data(path, "leave out --cali_data_path to collect them")
    if len(data) != cali_st * cali_n * rows:
        guided = ", with guidance," if rows > 1 else ""
        raise UserError(
            f"'{path}' holds {len(data)} samples, --cali_st {cali_st} and --cali_n {cali_n}{guided} ask for "
            f"{cali_st * cali_n * rows}: give the numbers that it was collected with"
        )
    return data


def read_collected_data(path: Path, remedy: str) -> CalibrationSet:
    """Read a file that `CalibrationSet.save` wrote.

    Args:
        path: the file.
        remedy: what to do instead of giving data, for the error message.

    Raises:
        UserError: it is not such a file.
    """
    try:
        return _read_own(path)
    except (SafetensorError, KeyError, ValueError, OSError):
        raise UserError(f"'{path}' holds no calibration data: give data, or {remedy}") from None


def _read_own(path: Path) -> CalibrationSet:
    with utf8_name(path) as name, safe_open(name, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        constants = json.loads((file.metadata() or {}).get("constants", "{}"))
    if not all(key.startswith(PREFIX) for key in tensors):
        raise ValueError("not the names of calibration data")
    return CalibrationSet.from_named({key.removeprefix(PREFIX): x for key, x in tensors.items()}, constants)
