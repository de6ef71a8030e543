"""Second moments of a layer's inputs, weighted by what an error of its output does to the sampled image."""

import torch
from torch import Tensor

from qdiff.shrinkage import Spread


class Moments:
    """Weighted moments of a layer's inputs x in the quantized network, and of its outputs y in full precision.

    Args:
        inputs, outputs: K and O of each group.
        groups: of the layer.
        centred: whether the means are taken off, because a bias makes up for them.
        like: gives device and dtype.

    Attributes:
        hessian: sum of w x x^T / sum of w, (G, K, K).
        cross: sum of w x y^T / sum of w, (G, K, O).
        power: sum of w |y|^2 / sum of w.
        mean_x, mean_y: (G, K), (G, O); zero unless `centred`.
        shrinkage: share of the diagonal in `shrunk`, 0..1, (G,).
    """

    def __init__(self, groups: int, inputs: int, outputs: int, *, centred: bool, like: Tensor):
        self.centred = centred
        self.weight = 0.0
        self.first: tuple[Tensor, Tensor] | None = None  # means of the first batch, near which sums lose no digits
        self.sums = [like.new_zeros(groups, inputs, n) for n in (inputs, outputs)]
        self.squares = 0.0
        self.spread = Spread(groups, inputs, like)
        self.means = [like.new_zeros(groups, 1, n) for n in (inputs, outputs)]

    def add(self, x: Tensor, y: Tensor, w: Tensor, units: Tensor) -> None:
        """Add columns x, (G, n, K), outputs y, (G, n, O), weights w >= 0 and numbers of units, (n,); see `Spread`."""
        total = w.sum().item()
        w = w.to(x)[:, None]
        if self.first is None:
            zero = 0.0 if total == 0 or not self.centred else 1 / total
            self.first = (x * w).sum(1, keepdim=True) * zero, (y * w).sum(1, keepdim=True) * zero
        x, y = x - self.first[0], y - self.first[1]
        weighted = x * w
        for sums, values in zip(self.sums, (x, y)):
            sums.baddbmm_(weighted.transpose(1, 2), values)
        self.spread.add(x, w[:, 0], units)
        self.means[0] += weighted.sum(1, keepdim=True)
        self.means[1] += (y * w).sum(1, keepdim=True)
        self.squares += (y.square() * w).sum().item()
        self.weight += total

    def finish(self) -> "Moments":
        """Divide the sums by the weights, and set the attributes above."""
        assert self.first is not None
        weight = self.weight or 1.0
        hessian, cross = (sums / weight for sums in self.sums)
        shift_x, shift_y = (mean / weight for mean in self.means)
        self.power = self.squares / weight
        if self.centred:
            hessian -= shift_x.transpose(1, 2) @ shift_x
            cross -= shift_x.transpose(1, 2) @ shift_y
            self.power -= shift_y.square().sum().item()
        self.hessian, self.cross = hessian, cross
        self.shrinkage = self.spread.shrinkage(hessian, shift_x[:, 0] * self.centred)
        self.mean_x, self.mean_y = ((a + b).squeeze(1) * self.centred for a, b in zip(self.first, (shift_x, shift_y)))
        return self

    @property
    def shrunk(self) -> Tensor:
        """The Hessian as it is expected on data that these units do not hold, (G, K, K)."""
        diagonal = torch.diag_embed(self.hessian.diagonal(dim1=1, dim2=2))
        return torch.lerp(self.hessian, diagonal, self.shrinkage[:, None, None])
