"""Loads full-precision weights into a network, and says in one line of the log which were taken."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from qdiff.checkpoints.choose import choose
from qdiff.checkpoints.read import FullPrecisionFile, read_checkpoint
from qdiff.checkpoints.validate import check_numbers, compare, shapes_of
from qdiff.errors import UserError
from qdiff.files.dtypes import FLOATS, dtype_name
from qdiff.files.state_dicts import StateDict

log = logging.getLogger(__name__)

# Renames the tensors of a file (path, state dict) to the keys of a network; returns them, and phrases for the log that
# say what was left out or computed
Layout = Callable[[str | Path, StateDict], tuple[dict[str, Tensor], list[str]]]


def as_it_is(_path: str | Path, chosen: StateDict) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors under their own keys: the `Layout` of files that have exactly the network's keys."""
    return dict(chosen.tensors), []


def load_weights(
    model: nn.Module,
    path: str | Path,
    *,
    layout: Layout = as_it_is,
    averages: bool | None = None,
    skip: tuple[str, ...] = (),
) -> None:
    """Load full-precision weights from a file into a network, on the CPU, memory-mapped where possible.

    Finds them in the file (see `qdiff.checkpoints.choose`) and logs which were taken.

    Args:
        model: may be on the meta device; its parameters and buffers are replaced and keep their dtypes.
        path: the checkpoint, in any floating-point type.
        layout: maps the file's keys to those of the network.
        averages: whether to take the averages if the file has both weights and averages; None if that is not known.
        skip: key prefixes to leave out; their keys and shapes are compared, their data are not read.

    Raises:
        UserError: damaged file, a calibrated file, weights of another network or several sets of weights.
    """
    file = read_checkpoint(path)
    if not isinstance(file, FullPrecisionFile):
        raise UserError(
            f"'{path}' is calibrated, full-precision weights are needed here: use --resume --cali_ckpt for it"
        )
    own = model.state_dict()
    chosen, notes = choose(path, file.found, own, averages)
    state, differences = layout(path, chosen)
    compare(path, shapes_of(state), shapes_of(own), written=chosen.tensors)
    loaded = converted(path, {key: x for key, x in state.items() if not key.startswith(skip)}, own)
    check_numbers(path, loaded)
    model.load_state_dict(loaded, assign=True, strict=not skip)
    report(path, chosen, own, [*notes, *differences])


def converted(path: str | Path, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the tensors of a file to the dtypes of the network, without copying those that match.

    Args:
        path: the file, for the error message.
        state: its tensors, with names and shapes of the network.
        own: the network's own, of which only the dtypes count.

    Raises:
        UserError: integers, or packed or complex numbers, where the network has floating-point numbers; fractions
            where it has integers.
    """
    result, done = {}, {}  # averages may stand for raw weights too, and are converted once
    for key, x in state.items():
        dtype = own[key].dtype
        if dtype.is_floating_point and x.dtype not in FLOATS:
            raise UserError(
                f"'{path}': '{key}' is {dtype_name(x.dtype)}, not a supported floating-point type: give a checkpoint "
                "in floating point"
            )
        if (id(x), dtype) not in done:
            done[id(x), dtype] = x.to(dtype)
        result[key] = done[id(x), dtype]
        if x.is_floating_point() and not dtype.is_floating_point and not torch.equal(result[key].to(x.dtype), x):
            raise UserError(
                f"'{path}': '{key}' holds fractions, the network has {dtype_name(dtype)}: give another file"
            )
    return result


def report(path: str | Path, chosen: StateDict, own: Mapping[str, Tensor], notes: Sequence[str]) -> None:
    """Log in one line which tensors were taken and converted, and what was left out."""
    which = "averages" if chosen.averaged else "weights"
    dtypes = {x.dtype for key, x in chosen.tensors.items() if key in own and x.dtype != own[key].dtype}
    kinds = f"converted from {', '.join(sorted(map(dtype_name, dtypes)))}" if dtypes else None
    log.info("%s", "; ".join(filter(None, [f"{which} from {chosen} of '{path}'", kinds, *notes])))
