"""Forwards that end at a block: record how it is called, or what it returns."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.utils.hooks import RemovableHandle

from qdiff.calls import Call, Samples, detached


class _BlockReached(Exception):
    """Ends a forward: what follows the block need not be computed."""


@contextmanager
def _ending(handle: RemovableHandle) -> Iterator[None]:
    try:
        yield
    except _BlockReached:
        pass
    finally:
        handle.remove()


def block_call(model: nn.Module, block: nn.Module, batch: Call) -> Call:
    """Return the arguments with which `batch(model)` calls `block`; the forward ends there.

    Args:
        model: the network.
        block: a module that it calls once per forward.
        batch: arguments of the network, N samples.

    Raises:
        ValueError: no argument has N samples.
    """
    found: list[Call] = []

    def hook(module, args, kwargs):
        found.append(Call(detached(args), detached(kwargs), len(batch)))
        raise _BlockReached

    with _ending(block.register_forward_pre_hook(hook, with_kwargs=True)):
        batch(model)
    return found[0]


def block_output(model: nn.Module, block: nn.Module, batch: Call) -> Samples:
    """Return what `block` returns within `batch(model)`; the forward ends there. Arguments as of `block_call`."""
    found: list[Samples] = []

    def hook(module, args, output):
        found.append(Samples(detached(output), len(batch)))
        raise _BlockReached

    with _ending(block.register_forward_hook(hook)):
        batch(model)
    return found[0]
