"""Attention in slices, so that only part of its scores exists at a time."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

SCORES = 2**25  # largest number of scores in a slice of more than one entry, 128 MiB in float32

Passes = Callable[[], Iterable[None]]
"""`passes()` yields once for each pass over the slices, at least once."""

_passes: ContextVar[Passes] = ContextVar("passes", default=lambda: (None,))


@contextmanager
def repeat_slices(passes: Passes) -> Iterator[None]:
    """Within the context, compute the slices once per item of `passes()`; the last pass gives the output.

    For observers that need every slice before the first output is valid. Attention that fits in one slice is computed
    once, without asking for `passes()`.
    """
    token = _passes.set(passes)
    try:
        yield
    finally:
        _passes.reset(token)


def in_slices(attend: Callable[..., Tensor], *operands: Tensor, scores: int) -> Tensor:
    """Return `attend(*operands)`, computed for a few entries of dimension 0 at a time.

    With gradients, each slice is computed again in the backward pass instead of being kept. `torch.export` takes all
    entries at once.

    Args:
        attend: attention that treats the entries of dimension 0 independently.
        operands: each (B, ...).
        scores: number of attention scores of one entry.
    """
    size = max(1, SCORES // scores)
    if torch.compiler.is_exporting() or size >= len(operands[0]):  # the batch of an exported graph is not known
        return attend(*operands)
    recomputed = partial(checkpoint, attend, use_reentrant=False, preserve_rng_state=False)  # nothing is random
    run = recomputed if torch.is_grad_enabled() else attend
    outputs: list[Tensor] = []
    for _ in _passes.get()():
        outputs.clear()  # before the next pass, or the outputs of two would be in memory at once
        outputs.extend(run(*parts) for parts in zip(*(x.split(size) for x in operands)))
    return torch.cat(outputs)
