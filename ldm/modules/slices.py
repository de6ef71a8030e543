"""Attention in slices, so that its scores take no more memory than is stated."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

SCORES = 2**25  # elements of the scores that are held at a time, 128 MiB in float32

_limit: ContextVar[int | None] = ContextVar("limit", default=SCORES)


@contextmanager
def at_once() -> Iterator[None]:
    """No slices inside, for who must see all scores together."""
    before = _limit.set(None)
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
    limit, entries = _limit.get(), len(operands[0])
    size = entries if limit is None else max(1, limit // scores)
    if size >= entries:
        return attend(*operands)
    run = partial(checkpoint, attend, use_reentrant=False) if torch.is_grad_enabled() else attend
    return torch.cat([run(*parts) for parts in zip(*(x.split(size) for x in operands))])
