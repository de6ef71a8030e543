"""Second moments of a layer's inputs, weighted by what an error of its output does to the sampled image."""

import torch
from torch import Tensor

from qdiff.closed_form.shrinkage import Spread

ROWS = 256  # of H that are summed in one product


class Moments:
    """Weighted moments of a layer's inputs x in the quantized network, and of its outputs y in full precision.

    Args:
        weight: W of the layer in full precision, (G, K, O), for each of its groups.
        centred: whether the means are taken off, because a bias makes up for them.

    Attributes:
        hessian: sum of w x x^T / sum of w, (G, K, K).
        missing: sum of w x (y - W x)^T / sum of w, (G, K, O): what the inputs lack, in the outputs.
        power: sum of w |y|^2 / sum of w.
        mean_x, mean_y: (G, K), (G, O); zero unless `centred`.
        shrinkage: share of the diagonal in `shrunk`, 0..1, (G,).
        trust: share of `missing` to expect on other data, 0..1, (G,).
    """

    def __init__(self, weight: Tensor, *, centred: bool):
        groups, inputs, outputs = weight.shape
        self.matrix, self.centred = weight, centred
        self.weight = 0.0
        self.first: tuple[Tensor, Tensor] | None = None  # means of the first batch, near which sums lose no digits
        self.sums = [weight.new_zeros(groups, inputs, n) for n in (inputs, outputs)]
        self.squares = 0.0
        self.means = [weight.new_zeros(groups, 1, n) for n in (inputs, outputs)]
        self.spread = Spread(groups, inputs, outputs, centred=centred, like=weight)

    def add(self, x: Tensor, y: Tensor, w: Tensor, units: Tensor) -> None:
        """Add columns x, (G, n, K), outputs y, (G, n, O), weights w >= 0 and numbers of units, (n,); see `Spread`."""
        total = w.sum().item()
        w = w.to(x)
        if self.first is None:
            share = w[:, None] * (1 / total if total and self.centred else 0.0)
            self.first = (x * share).sum(1, keepdim=True), (y * share).sum(1, keepdim=True)
        x, y = x - self.first[0], y - self.first[1]
        rest, weighted = y - x @ self.matrix, x * w[:, None]
        for start in range(0, x.shape[2], ROWS):  # H is symmetric: what is left of its diagonal follows
            rows = slice(start, start + ROWS)
            self.sums[0][:, rows, start:].baddbmm_(weighted[:, :, rows].transpose(1, 2), x[:, :, start:])
        self.sums[1].baddbmm_(weighted.transpose(1, 2), rest)
        self.spread.add(x, rest, w, units)
        self.means[0] += weighted.sum(1, keepdim=True)
        self.means[1] += (y * w[:, None]).sum(1, keepdim=True)
        self.squares += (y.square() * w[:, None]).sum().item()
        self.weight += total

    def finish(self) -> "Moments":
        """Divide the sums by the weights, and set the attributes above."""
        assert self.first is not None
        weight = self.weight or 1.0
        self.sums[0] = self.sums[0].triu() + self.sums[0].triu(1).transpose(1, 2)
        self.hessian, self.missing = (sums / weight for sums in self.sums)
        shift_x, shift_y = (mean / weight for mean in self.means)
        self.power = self.squares / weight
        if self.centred:
            self.hessian -= shift_x.transpose(1, 2) @ shift_x
            self.missing -= shift_x.transpose(1, 2) @ (shift_y - shift_x @ self.matrix)
            self.power -= shift_y.square().sum().item()
        self.mean_x, self.mean_y = ((a + b).squeeze(1) * self.centred for a, b in zip(self.first, (shift_x, shift_y)))
        self._judge()
        return self

    def _judge(self) -> None:
        """Set how far the moments hold on data that these units do not contain."""
        diagonal = self.hessian.diagonal(dim1=1, dim2=2).square().sum(1)
        sizes = self.hessian.square().sum((1, 2)) - diagonal, self.missing.square().sum((1, 2))
        self.shrinkage, doubt = (
            torch.where(size > 0, variance / size, 1.0).clamp(max=1.0)
            for size, variance in zip(sizes, self.spread.variances())
        )
        self.trust = 1 - doubt

    @property
    def shrunk(self) -> Tensor:
        """The Hessian as it is expected on other data, (G, K, K)."""
        diagonal = torch.diag_embed(self.hessian.diagonal(dim1=1, dim2=2))
        return torch.lerp(self.hessian, diagonal, self.shrinkage[:, None, None])
