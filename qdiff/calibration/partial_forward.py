"""Forwards that end at a module: what it is given, and what it returns."""

from collections.abc import Callable
from contextlib import contextmanager

from torch import Tensor, nn


class _Reached(Exception):
    """The block has been reached: what comes after it need not be computed."""


@contextmanager
def _stopping(handle):
    try:
        yield
    except _Reached:
        pass
    finally:
        handle.remove()


def block_inputs(block: nn.Module, run: Callable[[], object]) -> tuple[Tensor, ...]:
    """The positional arguments that `block` gets within `run()`, which is cut short there."""
    seen: list[tuple[Tensor, ...]] = []

    def hook(module, args):
        seen.append(tuple(x.detach() for x in args))
        raise _Reached

    with _stopping(block.register_forward_pre_hook(hook)):
        run()
    return seen[0]


def block_output(block: nn.Module, run: Callable[[], object]) -> Tensor:
    """What `block` returns within `run()`, which is cut short there."""
    seen: list[Tensor] = []

    def hook(module, args, output):
        seen.append(output.detach())
        raise _Reached

    with _stopping(block.register_forward_hook(hook)):
        run()
    return seen[0]
