"""Calibration data as the original code saves them: a pickled dict of per-step tensors `[step][sample, ...]`."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from qdiff.calibration.kept_steps import kept_steps
from qdiff.errors import UserError
from qdiff.files.pickles import load_pickle


def read_original(path: Path, cali_st: int, cali_n: int, conditions: Sequence[str]) -> tuple[Tensor, ...]:
    """Return x_t (N, C, H, W), t (N,) and, where there are conditions, c (N, ...), float32 where floating.

    The file has them under `xs`, `ts`, `cs` and, for guidance, `ucs`, the null conditions. Of every step of
    `kept_steps`, the first `cali_n` samples are taken once for each of the `conditions`, or once without any.

    Args:
        path: the file.
        cali_st, cali_n: timesteps, and samples of each.
        conditions: of `ucs`, `cs` those that the network is called with.

    Raises:
        UserError: not readable, not of this layout, or fewer samples than asked for.
    """
    names = ("xs", "ts", *conditions)
    stored = _per_step(path, names)
    steps, available = len(stored["xs"]), min(len(x) for name in names for x in stored[name])
    if steps < cali_st:
        raise UserError(f"'{path}' has {steps} timesteps, --cali_st asks for {cali_st}: lower it")
    if available < cali_n:
        raise UserError(f"'{path}' has {available} samples per timestep, --cali_n asks for {cali_n}: lower it")
    groups = [
        [stored[name][step][:cali_n] for name in ("xs", "ts", *condition)]
        for step in kept_steps(steps, cali_st)
        for condition in ([[c] for c in conditions] or [[]])
    ]
    return tuple(x.float() if x.is_floating_point() else x for x in map(torch.cat, zip(*groups)))


def _per_step(path: Path, names: Sequence[str]) -> dict[str, list[Tensor]]:
    """Return the lists by name, each with a tensor for every timestep."""
    try:
        content = dict(load_pickle(path))
        stored = {name: list(content[name]) for name in names}
    except (TypeError, KeyError, ValueError):  # what a pickle of something else leads to
        stored = {}
    if not (
        stored and len({len(xs) for xs in stored.values()}) == 1 and all(map(_is_list_of_batches, stored.values()))
    ):
        wanted = " and ".join([", ".join(map(repr, names[:-1])), repr(names[-1])])
        raise UserError(
            f"'{path}' has no lists {wanted} with a tensor for each timestep: give calibration data, or leave "
            "out --cali_data_path to collect them"
        )
    return stored


def _is_list_of_batches(xs: list[object]) -> bool:
    """Tell whether these are tensors (samples, ...) that differ at most in their number of samples."""
    tensors = [x for x in xs if isinstance(x, Tensor) and x.ndim]
    return bool(xs) and len(tensors) == len(xs) and len({x.shape[1:] for x in tensors}) == 1
