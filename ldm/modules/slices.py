"""Attention in slices, so that only part of its scores exists at a time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

SCORES = 2**25  # elements of the scores of a slice of more than one entry, 128 MiB in float32

_limit: ContextVar[float] = ContextVar("limit", default=SCORES)


@contextmanager
def slices(share: float) -> Iterator[None]:
    """Inside, slices have this share of their usual size; `math.inf` for who must see all scores together."""
    before = _limit.set(_limit.get() * share)
    try:
        yield
    finally:
        _limit.reset(before)


def in_slices(attend: Callable[..., Tensor], *operands: Tensor, scores: int) -> Tensor:
    """`attend(*operands)`, a few entries of dimension 0 at a time; for gradients, each slice is computed again.

    Args:
        attend: treats the entries of dimension 0 each by itself.
        operands: each (B, ...).
        scores: elements of the scores of one entry.
    """
    size = _limit.get() / scores
    if size >= len(operands[0]):
        return attend(*operands)
    again = partial(checkpoint, attend, use_reentrant=False, preserve_rng_state=False)  # nothing is drawn
    run, size = again if torch.is_grad_enabled() else attend, max(1, int(size))
    return torch.cat([run(*parts) for parts in zip(*(x.split(size) for x in operands))])
