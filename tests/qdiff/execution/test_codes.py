"""Codes are those of the quantizer."""

from itertools import product

import pytest
import torch

from qdiff.execution.codes import HALF, matmul, sums_of, to_codes, to_unsigned_
from qdiff.integers import act_integers
from tests.qdiff.execution.layers import act_quantizer, between_ties


@pytest.mark.parametrize(
    ("zero_point", "bits", "symmetric"), [(0, 8, False), (31, 8, False), (255, 8, False), (5, 4, False), (0, 6, True)]
)
@pytest.mark.parametrize("delta", [0.02, 3.7])
def test_codes_are_those_of_the_quantizer(zero_point, bits, symmetric, delta):
    q = act_quantizer(delta, zero_point, bits, symmetric)
    x = between_ties(q, (3, 4, 5, 6))
    codes = to_codes(x, act_integers(q))
    assert codes.dtype == torch.int8
    assert torch.equal(codes.int() + HALF, q.codes(x))
    sums = (q.codes(x) - act_integers(q).zero_point).sum(3, keepdim=True)
    assert torch.equal(sums_of(codes, act_integers(q).zero_point), sums)
    unsigned = to_unsigned_(codes)
    assert unsigned.dtype == torch.uint8 and torch.equal(unsigned.int(), q.codes(x))


def test_values_far_beyond_the_range_are_clipped():
    q = act_quantizer(0.5, 3, 4)
    codes = to_codes(torch.tensor([-1e30, 1e30, -torch.inf, torch.inf]), act_integers(q))
    assert (codes.int() + HALF).tolist() == [0, 15, 0, 15]


def test_few_values_differ_from_the_quantizer_by_one_code():
    q = act_quantizer(0.0213, 31, 8)
    x = torch.randn(2**16, generator=torch.Generator().manual_seed(0))
    difference = (to_codes(x, act_integers(q)).int() + HALF - q.codes(x)).abs()
    assert difference.max() <= 1 and difference.float().mean() < 1e-4


def test_codes_keep_the_layout_and_the_values_unchanged():
    q = act_quantizer(0.5, 3, 8)
    x = between_ties(q, (2, 8, 3, 3)).contiguous(memory_format=torch.channels_last)
    before = x.clone()
    for part in (x, x[:, :4]):
        assert to_codes(part, act_integers(q)).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x, before)


@pytest.mark.parametrize(("m", "k", "n"), [*product((1, 2, 65), (1, 2, 40), (1, 3, 64))])
def test_matrices_of_any_layout_are_multiplied_exactly(m, k, n):
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-128, 128, shape, dtype=torch.int8, generator=g) for shape in ((m, k), (k, n)))
    wanted = a.int() @ b.int()
    for x, y in product((a, a.T.clone().T, a.repeat(1, 2)[:, :k]), (b, b.T.clone().T)):
        assert torch.equal(matmul(x, y), wanted)
        assert torch.equal(matmul(x, y, torch.empty(m, n, dtype=torch.int32)), wanted)
    alone = a[:1].as_strided((1, k), (1, 1))  # a row may have any stride
    assert torch.equal(matmul(alone, b), wanted[:1])
