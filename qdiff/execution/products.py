"""Attention products that compute with integers."""

import torch
from torch import Tensor, nn

from qdiff.adapters import ProductKind
from qdiff.execution.codes import HALF, sums_of, to_codes
from qdiff.execution.leaf import ExecutedLeaf
from qdiff.integers import ActIntegers
from qdiff.phases import PerPhase

ActPair = tuple[ActIntegers, ActIntegers]  # of the two operands, in order


class Matrices:
    """A product of two activations as one of matrices: rows, summed over what both have, times columns.

    Attention weights are the rows, so that the channels of a product with values lie next to each other in memory, as
    the layer behind it wants them.

    Args:
        kind: with a contraction.
    """

    def __init__(self, kind: ProductKind):
        assert kind.contraction is not None
        *operands, result = kind.contraction.equation.replace("->", ",").split(",")
        self.swapped = kind.softmax == kind.operands[1]
        rows, columns = reversed(operands) if self.swapped else operands
        (batch,), (summed,) = set(rows) & set(columns) & set(result), set(rows) & set(columns) - set(result)
        (row,), (column,) = set(rows) - {batch, summed}, set(columns) - {batch, summed}
        self.rows = [rows.index(x) for x in (batch, row, summed)]
        self.columns = [columns.index(x) for x in (batch, summed, column)]
        self.result = [(batch, row, column).index(x) for x in result]

    def matrices(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return views of the operands as rows, (B, R, K), and columns, (B, K, C)."""
        rows, columns = (b, a) if self.swapped else (a, b)
        return rows.permute(self.rows), columns.permute(self.columns)


class ProductOfCodes(nn.Module):
    """A product in one phase.

    Codes less 128 are int8. With a - z = a' + s, where s = 128 - z, and likewise b' + t, the sum of K products is that
    of a' b' plus t times that of a', s times that of b', and K s t. These terms exceed their sum by far where most
    attention weights are small, so that they are added in int32, exactly, too.

    Args:
        kind: with a contraction.
        acts: integers of the operands, of at most 8 bits.
    """

    def __init__(self, kind: ProductKind, acts: ActPair):
        super().__init__()
        assert kind.contraction is not None
        self.acts, self.scaled, self.form = acts, kind.contraction.scaled, Matrices(kind)
        self.row_act, self.column_act = reversed(acts) if self.form.swapped else acts

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the product of the operands, in its shapes and float32."""
        codes = (to_codes(x, act) for x, act in zip((a, b), self.acts))
        rows, columns = self.form.matrices(*codes)
        sums = torch.empty(*rows.shape[:2], columns.shape[2], dtype=torch.int32)
        for x, y, out in zip(rows, columns, sums):
            torch._int_mm(x, y, out=out)
        s, t = HALF - self.row_act.zero_point, HALF - self.column_act.zero_point
        sums.add_(sums_of(rows, self.row_act.zero_point).mul_(t))
        sums.add_(sums_of(columns.mT, HALF).mT.mul(s))
        count = rows.shape[2]
        scale = self.row_act.scale * self.column_act.scale * (count**-0.5 if self.scaled else 1.0)
        return (sums * scale).permute(self.form.result)


class IntegerProduct(ExecutedLeaf):
    """A product of two activations with at most 8 bits that is computed with integers.

    Args:
        kind: with a contraction.
        phases: integers of the operands, in each phase.
    """

    nbytes, reason = 0, ""

    def __init__(self, kind: ProductKind, phases: list[ActPair]):
        super().__init__()
        products = [ProductOfCodes(kind, acts) for acts in phases]
        self.product = PerPhase(products) if len(products) > 1 else products[0]

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the product of the quantized operands, in the product's shapes and the dtype of `a`."""
        return self.product(a, b).to(a.dtype)
