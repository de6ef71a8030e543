"""Attention products that compute with integers."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from qdiff.adapters import ProductKind
from qdiff.execution.codes import HALF, matmul, sums_of, to_codes
from qdiff.execution.leaf import ExecutedLeaf
from qdiff.integers import ActIntegers
from qdiff.phases import PerPhase

BLOCK = 2**20  # values that are computed at a time, so that they stay in the processor's cache
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
        *operands, result = kind.contraction.indices
        self.swapped = kind.softmax == kind.operands[1]
        rows, columns = reversed(operands) if self.swapped else operands
        (batch,), summed = set(rows) & set(columns) & set(result), kind.contraction.summed
        (row,), (column,) = set(rows) - {batch, summed}, set(columns) - {batch, summed}
        self.rows = [rows.index(x) for x in (batch, row, summed)]
        self.columns = [columns.index(x) for x in (batch, summed, column)]
        self.result = [(batch, row, column).index(x) for x in result]

    def matrices(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return views of the operands as rows, (B, R, K), and columns, (B, K, C)."""
        rows, columns = (b, a) if self.swapped else (a, b)
        return rows.permute(self.rows), columns.permute(self.columns)


def blocks_of(entries: int, rows: int, width: int) -> Iterator[tuple[slice, slice]]:
    """Yield slices of entries and of their rows with about `BLOCK` values: several entries, or rows of a single one."""
    height = min(rows, max(1, BLOCK // width))
    count = max(1, BLOCK // (height * width))
    for entry in range(0, entries, count):
        for row in range(0, rows, height):
            yield slice(entry, entry + count), slice(row, row + height)


class ProductOfCodes(nn.Module):
    """A product in one phase.

    Codes less 128 are int8. With a - z = a' + s, where s = 128 - z, and likewise b' + t, the sum of K products is that
    of a' b' plus s times that of b', and t times that of a - z. These terms exceed their sum by far where most
    attention weights are small, so that they are added in int32, exactly, too.

    Args:
        kind: with a contraction.
        acts: integers of the operands, of at most 8 bits.
    """

    def __init__(self, kind: ProductKind, acts: ActPair):
        super().__init__()
        assert kind.contraction is not None
        self.form, self.scaled = Matrices(kind), kind.contraction.scaled
        self.row_act, self.column_act = reversed(acts) if self.form.swapped else acts

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the product of the operands, in its shapes and float32."""
        rows, columns = self.form.matrices(a, b)
        columns = to_codes(columns, self.column_act)
        sums = sums_of(columns.mT, HALF).mT.mul(HALF - self.row_act.zero_point)
        scale = self.row_act.scale * self.column_act.scale * (rows.shape[2] ** -0.5 if self.scaled else 1.0)
        y = torch.empty(*rows.shape[:2], columns.shape[2])
        for entries, part in blocks_of(len(rows), rows.shape[1], max(rows.shape[2], y.shape[2])):
            y[entries, part].copy_(self._sums(rows[entries, part], columns[entries], sums[entries])).mul_(scale)
        return y.permute(self.form.result)

    def _sums(self, rows: Tensor, columns: Tensor, column_sums: Tensor) -> Tensor:
        """Return the sums of products of codes less their zero points, int32."""
        codes = to_codes(rows, self.row_act)
        sums = torch.empty(*codes.shape[:2], columns.shape[2], dtype=torch.int32)
        for x, y, out in zip(codes, columns, sums):
            matmul(x, y, out)
        row_sums = sums_of(codes, self.row_act.zero_point).mul_(HALF - self.column_act.zero_point)
        return sums.add_(row_sums).add_(column_sums)


class IntegerProduct(ExecutedLeaf):
    """A product of two activations with at most 8 bits that is computed with integers.

    Args:
        kind: with a contraction.
        phases: integers of the operands, in each phase.
    """

    dtype, nbytes, reason = torch.int8, 0, ""

    def __init__(self, kind: ProductKind, phases: list[ActPair]):
        super().__init__()
        products = [ProductOfCodes(kind, acts) for acts in phases]
        self.product = PerPhase(products) if len(products) > 1 else products[0]

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the product of the quantized operands, in the product's shapes and the dtype of `a`."""
        return self.product(a, b).to(a.dtype)
