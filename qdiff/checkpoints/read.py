"""Reads checkpoints of any kind: ours, calibrated ones of the original, and full-precision weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from qdiff.checkpoints import original
from qdiff.checkpoints.content import QuantizedFile
from qdiff.checkpoints.quantized_file import read_if_quantized
from qdiff.checkpoints.summary import CheckpointSummary
from qdiff.errors import UserError
from qdiff.files.foreign import kind_of
from qdiff.files.formats import format_of
from qdiff.files.state_dicts import StateDict, largest, read_state_dicts


@dataclass(frozen=True)
class OriginalFile:
    """A calibrated checkpoint of the original: its tensors by key, and what they tell about it."""

    state: Mapping[str, Tensor]
    summary: CheckpointSummary


@dataclass(frozen=True)
class FullPrecisionFile:
    """A checkpoint that is neither ours nor calibrated by the original: its state dicts, at least one."""

    found: Sequence[StateDict]

    @property
    def kind(self) -> str | None:
        """What it is instead of weights that are read here, and what to do; None for such weights. See `kind_of`."""
        return kind_of(largest(self.found).tensors)


def read_checkpoint(path: str | Path) -> QuantizedFile | OriginalFile | FullPrecisionFile:
    """Read a checkpoint of any kind, told apart by its content.

    Raises:
        UserError: not a checkpoint, or damaged.
    """
    if format_of(path) == "safetensors" and (ours := read_if_quantized(path)):
        return ours
    found = read_state_dicts(path)
    calibrated = next((state for state in found if original.is_original(state.tensors)), None)
    if calibrated is None:
        return FullPrecisionFile(found)
    state = calibrated.unwrapped().tensors
    try:
        return OriginalFile(state, original.summarize(state))
    except ValueError as e:
        raise UserError(f"'{path}' is not a whole calibrated checkpoint: {e}") from e


def read_calibrated(path: str | Path) -> QuantizedFile | OriginalFile:
    """Read a calibrated checkpoint. Raises UserError as `read_checkpoint`, and for any other file."""
    file = read_checkpoint(path)
    if isinstance(file, FullPrecisionFile):
        full_precision = "a full-precision checkpoint without quantizers: use --ckpt or -r for it"
        raise UserError(f"'{path}' is {file.kind or full_precision}")
    return file
