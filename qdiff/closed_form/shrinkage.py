"""How far second moments of few samples can be trusted: shrinkage towards their diagonal (Ledoit and Wolf 2004)."""

import torch
from torch import Tensor

UNITS = 256  # samples counted by themselves; more of them are counted in as many groups
PROBES = 4  # random vectors on which moments are compared


class Spread:
    """The spread of second moments over independent units of data, seen through random vectors.

    A unit is a sample, or all samples in which a layer has the same input: those of one timestep for the time
    embedding, those of one prompt for the text that is attended to. However many positions and samples they have, a
    few units say little about inputs that they do not hold.

    Args:
        groups, inputs, outputs: G, K and O of the layer.
        centred: whether means are taken off.
        like: gives device and dtype.
    """

    def __init__(self, groups: int, inputs: int, outputs: int, *, centred: bool, like: Tensor):
        self.centred = centred
        generator = torch.Generator().manual_seed(0)
        self.probes = [torch.randn(n, PROBES, generator=generator).to(like) for n in (inputs, outputs)]
        self.weights = like.new_zeros(UNITS)
        self.sums = like.new_zeros(UNITS, groups, inputs)
        self.seen = like.new_zeros(UNITS, groups, 2 * PROBES)
        self.moments = like.new_zeros(UNITS, groups, 2 * PROBES, inputs)
        self.known: dict[str, int] = {}

    def units(self, x: Tensor) -> Tensor:
        """Return the number of each sample's unit, (N,), int64; the input of the layer is x, (N, C, ...)."""
        means = x.flatten(2).mean(2)
        generator = torch.Generator().manual_seed(0)
        marks = means @ torch.randn(means.shape[1], generator=generator).to(means)
        found = [self.known.setdefault(f"{mark:.4e}", len(self.known)) for mark in marks.tolist()]
        return torch.tensor(found, device=x.device) % UNITS

    def add(self, x: Tensor, rest: Tensor, w: Tensor, units: Tensor) -> None:
        """Add columns x, (G, n, K), and what goes with them, (G, n, O), with weights w and numbers of units, (n,)."""
        order = units.argsort(stable=True)
        numbers, sizes = units.unique(return_counts=True)
        seen = [values @ probes for values, probes in zip((x, rest), self.probes)]
        of_columns = torch.cat([torch.ones_like(seen[0][..., :1]), *seen], -1) * w[:, None]
        parts = zip(*(values[:, order].split(sizes.tolist(), dim=1) for values in (of_columns, x)))
        found = torch.stack(
            [a.transpose(1, 2) @ b for a, b in parts]
        )  # a product a unit is much faster than index_add_
        self.sums[numbers] += found[:, :, 0]
        self.moments[numbers] += found[:, :, 1:]
        self.weights.index_add_(0, units, w)
        self.seen.index_add_(0, units, of_columns[..., 1:].transpose(0, 1))

    def variances(self) -> tuple[Tensor, Tensor]:
        """Return the squared errors to expect of the moments x x^T and x rest^T, summed over entries, (G,) each.

        They are infinite where there is one unit.
        """
        total = self.weights.sum()
        share = self.weights / total
        moments = self._centred() / total
        off = (moments - share[:, None, None, None] * moments.sum(0)).square().sum((0, 3)) / PROBES
        off = torch.where(self.weights.count_nonzero() > 1, off / (1 - share.square().sum()), torch.inf)
        return off[:, :PROBES].sum(1), off[:, PROBES:].sum(1)

    def _centred(self) -> Tensor:
        """Return the moments of each unit about the means over all of them, (units, G, 2 probes, K)."""
        if not self.centred:
            return self.moments
        total = self.weights.sum()
        mean, mean_seen = self.sums.sum(0) / total, self.seen.sum(0) / total
        rest = self.seen - self.weights[:, None, None] * mean_seen
        return self.moments - self.sums[:, :, None] * mean_seen[..., None] - mean[:, None] * rest[..., None]
