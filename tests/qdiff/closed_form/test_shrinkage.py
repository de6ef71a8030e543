"""The spread of moments over units, against the formula with all moments at hand."""

import pytest
import torch
from torch import Tensor

from qdiff.closed_form.shrinkage import PROBES, UNITS, Spread

INPUTS = 24


def drawn(units: int, each: int, seed: int = 0) -> Tensor:
    """Columns (units, each, K) with correlations of their own in every unit, float64."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(INPUTS, INPUTS, generator=generator, dtype=torch.float64)
    own = torch.randn(units, INPUTS, INPUTS, generator=generator, dtype=torch.float64)
    return torch.randn(units, each, INPUTS, generator=generator, dtype=torch.float64) @ (common + 0.5 * own)


def spread_of(x: Tensor, y: Tensor, w: Tensor, *, centred: bool) -> Spread:
    found = Spread(1, x.shape[2], y.shape[2], centred=centred, like=x)
    for i, (columns, values, weights) in enumerate(zip(x, y, w)):
        found.add(columns[None], values[None], weights, torch.full((len(columns),), i))
    return found


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_the_variances_are_those_of_all_moments(shift, monkeypatch):
    """Of the mean over units with different weights; with many random vectors the estimate is close.

    Where means are taken off, columns about another point give the same.
    """
    monkeypatch.setattr("qdiff.closed_form.shrinkage.PROBES", 4000)
    x, y = drawn(6, 40), drawn(6, 40, seed=2)[..., :5] + 1
    w = torch.rand(6, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = spread_of(x + shift, y + shift, w, centred=True)
    means = [(z * w[..., None]).sum((0, 1)) / w.sum() for z in (x, y)]
    x, y = x - means[0], y - means[1]
    share = (w.sum(1) / w.sum())[:, None, None]
    for values, variance in zip((x, y), found.variances(), strict=True):
        own = torch.einsum("unk,uno,un->uko", x, values, w) / w.sum()
        expected = (own - share * own.sum(0)).square().sum().item() / (1 - share.square().sum().item())
        assert variance.item() == pytest.approx(expected, rel=0.05)


def test_more_units_leave_less_doubt():
    variances = []
    for units in (1, 2, 20, 200):
        x = drawn(units, 30)
        spread = spread_of(x, x[..., :2], torch.ones(units, 30, dtype=torch.float64), centred=False)
        variances.append([variance.item() for variance in spread.variances()])
    assert variances[0] == [float("inf")] * 2, "one unit says nothing of others"
    assert all(a > b > c > 0 for a, b, c in zip(*variances[1:]))


def test_equal_inputs_are_one_unit():
    spread = Spread(1, 8, 2, centred=True, like=torch.zeros(()))
    x = torch.randn(3, 8, 2, 2, generator=torch.Generator().manual_seed(0))
    first = spread.units(torch.cat([x, x[:1]]))
    assert first.tolist() == [0, 1, 2, 0]
    assert spread.units(x[1:]).tolist() == [1, 2], "also in a later batch"
    assert PROBES > 0 and spread.units(torch.randn(2 * UNITS, 8, 1, 1)).max() < UNITS
