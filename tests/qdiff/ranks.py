"""Threads in the place of processes that share a job, with what `qdiff.parallel` uses of `torch.distributed`."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest
from torch import Tensor

from qdiff import parallel

T = TypeVar("T")


class Group:
    """A default group whose ranks are threads."""

    def __init__(self, size: int):
        self.size, self.slots = size, [None] * size
        self.barrier, self.local = threading.Barrier(size, timeout=60), threading.local()

    def get_rank(self) -> int:
        return self.local.rank

    def get_world_size(self) -> int:
        return self.size

    def _gathered(self, mine: Any) -> list:
        self.slots[self.local.rank] = mine
        self.barrier.wait()
        found = list(self.slots)
        self.barrier.wait()
        return found

    def all_reduce(self, x: Tensor) -> None:
        x.copy_(sum(self._gathered(x.clone())))

    def broadcast(self, x: Tensor, src: int) -> None:
        x.copy_(self._gathered(x.clone())[src])

    def broadcast_object_list(self, objects: list, src: int) -> None:
        objects[:] = self._gathered(list(objects))[src]

    def run(self, rank: int, function: Callable[[int], T]) -> T:
        self.local.rank = rank
        try:
            return function(rank)
        except threading.BrokenBarrierError:
            raise
        except BaseException:
            self.barrier.abort()  # the others would wait for this rank
            raise


def in_ranks(size: int, function: Callable[[int], T], monkeypatch: pytest.MonkeyPatch) -> list[T]:
    """What `function` returns for each rank, called in all at once."""
    group = Group(size)
    monkeypatch.setattr(parallel, "dist", group)
    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(group.run, rank, function) for rank in range(size)]
    return [future.result() for future in futures]
