"""How processes share the learning of a block: each computes on its part of every batch, and gradients are averaged.

All processes draw the same samples and hold the same variables, so the result is that of one process, up to the order
of floating-point sums.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from qdiff.files.journal import Journal

Items = TypeVar("Items", Tensor, list)


class Parallel(Protocol):
    """Divides work among processes. Every process must call the same methods in the same order, all but `share`."""

    def share(self, items: Items) -> Items:
        """Return this process's part of a list, or of a tensor's rows."""

    def total(self, value: float) -> float:
        """Return the sum of a number over the processes, the same in all."""

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors, of any shapes and one dtype and device, by their means over the processes."""

    def agree(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors, of any shapes, by those of the first process."""

    def journal(self, journal: Journal) -> Journal:
        """Return the journal as this process may use it."""


class Alone:
    """One process, which does everything."""

    def share(self, items: Items) -> Items:
        return items

    def total(self, value: float) -> float:
        return value

    def average(self, tensors: Sequence[Tensor]) -> None:
        pass

    def agree(self, tensors: Sequence[Tensor]) -> None:
        pass

    def journal(self, journal: Journal) -> Journal:
        return journal


ALONE = Alone()


class Shared:
    """The processes of the default group of `torch.distributed`, which must be initialised.

    Args:
        device: of the tensors that the group's backend exchanges.
    """

    def __init__(self, device: torch.device):
        self.device, self.rank, self.size = device, dist.get_rank(), dist.get_world_size()

    def share(self, items: Items) -> Items:
        return items[self.rank :: self.size]

    def total(self, value: float) -> float:
        exchanged = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(exchanged)
        return exchanged.item()

    def average(self, tensors: Sequence[Tensor]) -> None:
        flat = torch.cat([x.flatten() for x in tensors])  # one message, because each has a latency
        dist.all_reduce(flat)
        flat /= self.size
        for x, mean in zip(tensors, flat.split([x.numel() for x in tensors])):
            x.copy_(mean.view_as(x))

    @torch.no_grad()
    def agree(self, tensors: Sequence[Tensor]) -> None:
        for x in tensors:
            first = x.detach().contiguous()
            dist.broadcast(first, src=0)
            x.copy_(first)

    def journal(self, journal: Journal) -> Journal:
        return _SharedJournal(journal, self.rank)


class _SharedJournal(Journal):
    """A journal that the first process alone reads and writes, so that all agree on what it holds."""

    def __init__(self, journal: Journal, rank: int):
        self.folder, self._own, self._rank = journal.folder, journal, rank

    def write(self, unit: str, tensors: Mapping[str, Tensor], info: Mapping[str, Any] | None = None) -> None:
        if self._rank == 0:
            self._own.write(unit, tensors, info)

    def read(self, unit: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        found = [self._own.read(unit) if self._rank == 0 else None]
        dist.broadcast_object_list(found, src=0)
        return found[0]
