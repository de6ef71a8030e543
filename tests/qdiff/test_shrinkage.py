"""Shrinkage of moments: against its formula with all moments at hand, and its limits."""

import pytest
import torch
from torch import Tensor

from qdiff.shrinkage import PROBES, UNITS, Spread

INPUTS = 24


def drawn(units: int, each: int, seed: int = 0) -> Tensor:
    """Columns (units, each, K) with correlations of their own in every unit, float64."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(INPUTS, INPUTS, generator=generator, dtype=torch.float64)
    own = torch.randn(units, INPUTS, INPUTS, generator=generator, dtype=torch.float64)
    return torch.randn(units, each, INPUTS, generator=generator, dtype=torch.float64) @ (common + 0.5 * own)


def spread_of(x: Tensor, w: Tensor, mean: Tensor) -> tuple[Spread, Tensor]:
    found = Spread(1, INPUTS, x)
    for i, (columns, weights) in enumerate(zip(x, w)):
        found.add(columns[None], weights, torch.full((len(columns),), i))
    flat, weights = (x - mean).flatten(0, 1), w.flatten()
    return found, (flat.T * weights @ flat / weights.sum())[None]


@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_the_share_is_that_of_all_moments(mean, monkeypatch):
    """Ledoit and Wolf: the variance of H over units by how far H is from its diagonal; with many probes, it is close.

    Columns about another point give the same, once that is told.
    """
    monkeypatch.setattr("qdiff.shrinkage.PROBES", 4000)
    x = drawn(6, 40)
    w = torch.rand(6, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    shift = torch.full((INPUTS,), mean, dtype=torch.float64)
    found, hessian = spread_of(x + shift, w, shift)
    share = w.sum(1) / w.sum()
    own = torch.stack([columns.T * weights @ columns / weights.sum() for columns, weights in zip(x, w)])
    noise = (share[:, None, None] * (own - hessian)).square().sum()
    away = (hessian - torch.diag_embed(hessian.diagonal(dim1=1, dim2=2))).square().sum()
    assert found.shrinkage(hessian, shift[None]).item() == pytest.approx((noise / away).item(), rel=0.05)


def test_one_unit_says_nothing_and_many_say_more_than_few():
    mean = torch.zeros(1, INPUTS, dtype=torch.float64)
    shares = []
    for units in (2, 20, 200):
        x = drawn(units, 30)
        found, hessian = spread_of(x, torch.ones(units, 30, dtype=torch.float64), mean[0])
        shares.append(found.shrinkage(hessian, mean).item())
    assert 1 >= shares[0] > shares[1] > shares[2] > 0


def test_equal_inputs_are_one_unit():
    spread = Spread(1, 8, torch.zeros(()))
    x = torch.randn(3, 8, 2, 2, generator=torch.Generator().manual_seed(0))
    first = spread.units(torch.cat([x, x[:1]]))
    assert first.tolist() == [0, 1, 2, 0]
    assert spread.units(x[1:]).tolist() == [1, 2], "also in a later batch"
    assert PROBES > 0 and spread.units(torch.randn(2 * UNITS, 8, 1, 1)).max() < UNITS


def test_inputs_that_do_not_vary_are_all_diagonal():
    spread = Spread(1, 3, torch.zeros(()))
    spread.add(torch.zeros(1, 4, 3), torch.ones(4), torch.arange(4))
    assert spread.shrinkage(torch.zeros(1, 3, 3), torch.zeros(1, 3)).tolist() == [1.0]
