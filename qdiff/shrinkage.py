"""How far second moments of few samples can be trusted: shrinkage towards their diagonal (Ledoit and Wolf 2004)."""

import torch
from torch import Tensor

UNITS = 256  # samples counted by themselves; more of them are counted in as many groups
PROBES = 4  # random vectors on which moments are compared


class Spread:
    """The spread of second moments x x^T over independent units of data, seen through random vectors.

    A unit is a sample, or all samples in which a layer has the same input: those of one timestep for the time
    embedding, those of one prompt for the text that is attended to. However many positions and samples they have, a
    few units say little about inputs that they do not hold.

    Args:
        groups, inputs: G and K of the layer.
        like: gives device and dtype.
    """

    def __init__(self, groups: int, inputs: int, like: Tensor):
        generator = torch.Generator().manual_seed(0)
        self.probes = torch.randn(inputs, PROBES, generator=generator).to(like)
        self.weights = like.new_zeros(UNITS)
        self.sums = like.new_zeros(UNITS, groups, inputs)
        self.moments = like.new_zeros(UNITS, groups, PROBES, inputs)
        self.known: dict[str, int] = {}

    def units(self, x: Tensor) -> Tensor:
        """Return the number of each sample's unit, (N,), int64; the input of the layer is x, (N, C, ...)."""
        means = x.flatten(2).mean(2)
        generator = torch.Generator().manual_seed(0)
        marks = means @ torch.randn(means.shape[1], generator=generator).to(means)
        found = [self.known.setdefault(f"{mark:.4e}", len(self.known)) for mark in marks.tolist()]
        return torch.tensor(found, device=x.device) % UNITS

    def add(self, x: Tensor, w: Tensor, units: Tensor) -> None:
        """Add columns x, (G, n, K), with weights w and numbers of units, (n,)."""
        seen = x @ self.probes * w[:, None]
        self.weights.index_add_(0, units, w)
        self.sums.index_add_(0, units, (x * w[:, None]).transpose(0, 1))
        for i in range(PROBES):
            self.moments[:, :, i].index_add_(0, units, (x * seen[..., i, None]).transpose(0, 1))

    def shrinkage(self, hessian: Tensor, mean: Tensor) -> Tensor:
        """Return the share, 0..1, of the diagonal in the best estimate, (1 - share) H + share diag(H), by group, (G,).

        Args:
            hessian: H, (G, K, K), the moments of x - mean over all units.
            mean: of the columns that were added, or what else is taken off them, (G, K).
        """
        total = self.weights.sum()
        share = (self.weights / total)[:, None, None, None]
        moments = self._about(mean) / total
        noise = (moments - share * moments.sum(0)).square().sum((0, 2, 3)) / PROBES
        away = hessian.square().sum((1, 2)) - hessian.diagonal(dim1=1, dim2=2).square().sum(1)
        return torch.where(away > 0, noise / away, 1.0).clamp(max=1.0)

    def _about(self, mean: Tensor) -> Tensor:
        """Return the sum of w (x - mean) (x - mean)^T probe of each unit, (units, G, probes, K)."""
        on_mean = mean @ self.probes  # (G, probes)
        on_sums = self.sums @ self.probes  # (units, G, probes)
        rest = on_sums - self.weights[:, None, None] * on_mean
        return self.moments - self.sums[:, :, None] * on_mean[..., None] - mean[:, None] * rest[..., None]
