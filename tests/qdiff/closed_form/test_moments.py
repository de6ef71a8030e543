"""Moments in batches against their formulas over all columns at once, in float64."""

import pytest
import torch
from torch import Tensor

from qdiff.closed_form.moments import Moments

GROUPS, N, INPUTS, OUTPUTS = 2, 60, 5, 3
WEIGHT = torch.randn(GROUPS, INPUTS, OUTPUTS, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def drawn(seed: int, mean: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Columns x and outputs y that go with them, in float64, and weights in float32."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(GROUPS, N, INPUTS, generator=generator, dtype=torch.float64) + mean
    y = x @ torch.randn(GROUPS, INPUTS, OUTPUTS, generator=generator, dtype=torch.float64) + mean
    y += torch.randn(GROUPS, N, OUTPUTS, generator=generator, dtype=torch.float64)
    return x, y, torch.rand(N, generator=generator).square()


def expected(x: Tensor, y: Tensor, w: Tensor, centred: bool) -> dict[str, Tensor]:
    share = (w.double() / w.double().sum())[:, None]
    mean_x, mean_y = ((z * share).sum(1) * centred for z in (x, y))
    x, y = x - mean_x[:, None], y - mean_y[:, None]
    return {
        "hessian": torch.einsum("gnk,gnl,n->gkl", x, x, share[:, 0]),
        "missing": torch.einsum("gnk,gno,n->gko", x, y - x @ WEIGHT.to(x), share[:, 0]),
        "power": (y.square() * share).sum(),
        "mean_x": mean_x,
        "mean_y": mean_y,
    }


def moments(x: Tensor, y: Tensor, w: Tensor, centred: bool, sizes: tuple[int, ...]) -> Moments:
    found = Moments(WEIGHT.to(x), centred=centred)
    for part in zip(x.split(sizes, 1), y.split(sizes, 1), w.split(sizes), torch.arange(len(w)).split(sizes)):
        found.add(*part)
    return found.finish()


def check(found: Moments, wanted: dict[str, Tensor], rtol: float) -> None:
    for name, value in wanted.items():
        error = (torch.as_tensor(getattr(found, name)) - value).norm()
        assert error <= rtol * value.norm(), (name, error)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("sizes", [(60,), (1, 59), (20, 7, 33)])
def test_batches_give_the_moments_of_all_columns(sizes, centred):
    x, y, w = drawn(0, mean=1.0)
    check(moments(x, y, w, centred, sizes), expected(x, y, w, centred), 1e-6)


@pytest.mark.parametrize("first", [0.0, 30.0])
def test_large_means_cost_no_digits(first):
    """Means of 1000 in float32, whose squares are 10^6: the plain difference of moments would keep one digit.

    Also if the first batch lies elsewhere than the rest.
    """
    x, y, w = drawn(1, mean=1000.0)
    x[:, :9] += first
    x, y = x.float(), y.float()
    found = moments(x, y, w, True, (9, 11, 40))
    wanted = expected(x.double(), y.double(), w, True)
    check(found, wanted, 1e-3 if first else 1e-5)


def test_columns_without_weight_count_for_nothing():
    x, y, w = drawn(2)
    w[:20] = 0
    found = moments(x, y, w, True, (20, 40))
    check(found, expected(x[:, 20:], y[:, 20:], w[20:], True), 1e-6)


def test_weights_count_by_their_ratio_alone():
    x, y, w = drawn(3)
    a, b = (moments(x, y, w * scale, True, (60,)) for scale in (1.0, 1e6))
    torch.testing.assert_close(a.hessian, b.hessian, rtol=1e-6, atol=1e-9)
    assert a.power == pytest.approx(b.power)


def test_equal_columns_have_no_moments():
    x, y = torch.full((GROUPS, 4, INPUTS), 3.7), torch.full((GROUPS, 4, OUTPUTS), -1.3)
    found = moments(x, y, torch.rand(4, generator=torch.Generator().manual_seed(0)), True, (4,))
    assert found.hessian.abs().max() < 1e-12 and found.power < 1e-12
    torch.testing.assert_close(found.mean_x, x[:, 0])
    torch.testing.assert_close(found.mean_y, y[:, 0])
