"""Count the memory of tensors: while a computation runs, or beforehand without any values."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qdiff.calls import Call

COUNTED = 32  # samples of the largest batch that is run


class _LiveTensors(TorchDispatchMode):
    """Counts the bytes of tensors allocated in its scope and not yet freed."""

    def __init__(self):
        super().__init__()
        self.bytes = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self._note((args, kwargs), counted=False)  # tensors from outside are not counted, nor are their views
        output = func(*args, **(kwargs or {}))
        self._note(output, counted=True)
        return output

    def _note(self, tree: object, counted: bool) -> None:
        for x in tree_leaves(tree):
            if isinstance(x, Tensor) and (storage := x.untyped_storage())._cdata not in self.known:
                size = storage.nbytes() * counted
                self.known.add(storage._cdata)
                self.bytes += size
                self.peak = max(self.peak, self.bytes)
                weakref.finalize(storage, self._forget, storage._cdata, size)

    def _forget(self, storage: int, size: int) -> None:
        self.known.discard(storage)
        self.bytes -= size


def peak_bytes(run: Callable[[], object]) -> int:
    """Return the peak bytes of tensors allocated inside `run()`; the workspace of kernels is not seen."""
    with _LiveTensors() as live:
        run()
    return live.peak


def batch_peak(module: nn.Module, run: Callable[..., object], call: Call, size: int) -> int:
    """Return `peak_bytes` of `run` on a batch, without computing it: tensors have shapes and no values.

    Args:
        module: what `run` computes with.
        run: called with the arguments of `call` for a batch; it must not look at values.
        call: arguments for any number of samples.
        size: of the batch, which is counted too.

    Returns:
        Bytes. Beyond 32 samples, 32 in proportion: an upper bound where a part does not grow with the batch, or comes
        in slices.
    """
    counted = min(size, COUNTED)
    shapes = call.to("meta")
    with without_values(module):
        peak = peak_bytes(lambda: shapes.empty(counted)(run))
    return peak * size // counted


@contextmanager
def without_values(module: nn.Module) -> Iterator[None]:
    """Give parameters and buffers shapes without values inside; afterwards they are the same objects as before."""
    found: list[tuple[dict[str, Any], str, Tensor]] = [
        (held, name, x)
        for part in module.modules()
        for held in (part._parameters, part._buffers)
        for name, x in held.items()
        if x is not None
    ]
    try:
        for held, name, x in found:
            empty = torch.empty_like(x, device="meta")
            held[name] = nn.Parameter(empty, x.requires_grad) if isinstance(x, nn.Parameter) else empty
        yield
    finally:
        for held, name, x in found:
            held[name] = x
