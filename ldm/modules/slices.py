"""Attention in slices, so that only part of its scores exists at a time."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

SCORES = 2**25  # elements of the scores of a slice of more than one entry, 128 MiB in float32

Times = Callable[[], Iterable[None]]

_times: ContextVar[Times] = ContextVar("times", default=lambda: (None,))


@contextmanager
def repeat_slices(times: Times) -> Iterator[None]:
    """Repeat the slices of attention, inside the context, once for each item of `times()`; the last pass counts.

    For observers that need every slice before the first output is valid. What is not sliced is computed once.
    """
    before = _times.set(times)
    try:
        yield
    finally:
        _times.reset(before)


def in_slices(attend: Callable[..., Tensor], *operands: Tensor, scores: int) -> Tensor:
    """`attend(*operands)`, a few entries of dimension 0 at a time; for gradients, each slice is computed again.

    Args:
        attend: treats the entries of dimension 0 each by itself.
        operands: each (B, ...).
        scores: elements of the scores of one entry.
    """
    size = max(1, SCORES // scores)
    if size >= len(operands[0]):
        return attend(*operands)
    again = partial(checkpoint, attend, use_reentrant=False, preserve_rng_state=False)  # nothing is drawn
    run = again if torch.is_grad_enabled() else attend
    for _ in _times.get()():
        found = []  # before the next time's, or both would be there at once
        found.extend(run(*parts) for parts in zip(*(x.split(size) for x in operands)))
    return torch.cat(found)
