"""The search for ranges against loops over single numbers, closed forms and properties."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qdiff import ranges
from qdiff.functional import code_bounds, fake_quantize
from qdiff.ranges import MIN_DELTA, RANGE_SEARCH, affine, joined, range_mse, range_weighted, summarize
from tests.qdiff.loops import BITS, F32, ROWS, WIDTH, gaussian, quantize_number


def search_error(row: np.ndarray, delta: F32, zero_point: F32, lo: int, hi: int) -> float:
    return math.fsum(abs(float(quantize_number(v, delta, zero_point, lo, hi)) - float(v)) ** 2.4 for v in row)


def candidates(row: np.ndarray, bits: int, symmetric: bool) -> list[tuple[F32, F32]]:
    """Step and zero point of the 80 ranges of the published search."""
    found = []
    for i in range(80):
        shrink = F32(1 - i / 100)
        low, high = row.min() * shrink, row.max() * shrink
        if symmetric:
            found.append((max(abs(low), abs(high)) / F32(2 ** (bits - 1) - 1), F32(0)))
        else:
            delta = (high - low) / F32(2**bits - 1)
            found.append((delta, np.rint(-low / delta)))
    return found


def test_affine_of_a_range_with_zero_inside():
    delta, zero_point = affine(torch.tensor([-1.0]), torch.tensor([2.0]), 2, False)
    assert (delta.item(), zero_point.item()) == (1.0, 1.0)


def test_affine_symmetric_takes_the_longer_side():
    for low, high in ((-3.0, 1.0), (-1.0, 3.0)):
        delta, zero_point = affine(torch.tensor([low]), torch.tensor([high]), 3, True)
        assert (delta.item(), zero_point.item()) == (1.0, 0.0)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("search", RANGE_SEARCH.values())
def test_a_tensor_of_zeros_gets_the_smallest_step(search, symmetric):
    delta, zero_point = search(summarize(torch.zeros(1, 4)), 4, symmetric, False)
    assert delta.item() == pytest.approx(MIN_DELTA)
    assert zero_point.item() == 0


@given(ROWS, BITS, st.booleans())
def test_margin_is_minmax_of_values_that_are_larger(rows, bits, symmetric):
    found = RANGE_SEARCH["margin"](summarize(rows), bits, symmetric, False)
    expected = RANGE_SEARCH["minmax"](summarize(1.2 * rows), bits, symmetric, False)
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=1e-5, atol=0)
    assert torch.equal(found[1], expected[1])


def test_attention_weights_have_no_margin():
    row = summarize(torch.tensor([[0.0, 0.5, 0.25]]))
    assert RANGE_SEARCH["margin"](row, 8, False, True) == RANGE_SEARCH["minmax"](row, 8, False, True)


@given(ROWS, BITS, st.booleans())
def test_minmax_leaves_zero_exact_and_errs_by_half_a_step_at_most(rows, bits, symmetric):
    delta, zero_point = RANGE_SEARCH["minmax"](summarize(rows), bits, symmetric, False)
    lo, hi = code_bounds(bits, symmetric)
    assert ((lo <= zero_point) & (zero_point <= hi)).all()
    d, z = delta[:, None], zero_point[:, None]
    assert (fake_quantize(torch.zeros_like(rows), d, z, lo, hi) == 0).all()
    error = (fake_quantize(rows, d, z, lo, hi).double() - rows.double()).abs()
    assert (error <= d.double() / 2 + 1e-6 * rows.abs().amax()).all()


@given(ROWS, BITS)
def test_always_zero_starts_at_zero_and_reaches_the_maximum(rows, bits):
    rows = rows.abs()
    for name in ("minmax", "max", "max_scale"):
        delta, zero_point = RANGE_SEARCH[name](summarize(rows), bits, False, True)
        assert not zero_point.any()
        expected = (rows.amax(1) / (2**bits - 1)).clamp(min=MIN_DELTA)
        torch.testing.assert_close(delta, expected)
    delta, zero_point = RANGE_SEARCH["mse"](summarize(rows + 1), bits, False, True)
    assert not zero_point.any()
    widest = (rows + 1).amax(1) / (2**bits - 1)
    assert ((0.2 * widest < delta) & (delta < 1.01 * widest)).all()


@given(ROWS, BITS)
def test_max_takes_the_step_from_the_raw_range_and_the_zero_point_from_the_one_with_zero(rows, bits):
    delta, zero_point = RANGE_SEARCH["max"](summarize(rows), bits, False, False)
    for i, row in enumerate(rows.numpy()):
        step = max((row.max() - row.min()) / F32(2**bits - 1), F32(MIN_DELTA))
        assert delta[i].item() == step
        assert zero_point[i].item() == np.rint(-min(row.min(), F32(0)) / step)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("make", [lambda x: x, lambda x: x**3, lambda x: x.exp(), lambda x: x.abs() + 1, torch.relu])
def test_error_search_finds_the_best_of_the_published_candidates(make, bits, symmetric):
    rows = make(gaussian(2, 40, seed=bits))
    lo, hi = code_bounds(bits, symmetric)
    delta, zero_point = range_mse(summarize(rows), bits, symmetric, False)
    for row, d, z in zip(rows.numpy(), delta.numpy(), zero_point.numpy()):
        tried = candidates(row, bits, symmetric)
        assert any(math.isclose(d, step, rel_tol=1e-6) and z == zero for step, zero in tried)
        best = min(search_error(row, *candidate, lo, hi) for candidate in tried)
        assert search_error(row, d, z, lo, hi) <= best * (1 + 1e-5)


def test_the_narrowest_range_of_the_error_search_is_21_percent():
    row = torch.tensor([[1.0] + 300 * [0.2]])  # the many would have a step of 0.2
    delta, _ = range_mse(summarize(row), 2, True, False)
    assert delta.item() == pytest.approx(0.21)


@given(ROWS, BITS)
def test_symmetric_error_search_covers_both_signs(rows, bits):
    lo, hi = code_bounds(bits, True)
    delta, zero_point = range_mse(summarize(rows), bits, True, False)
    assert not zero_point.any()
    full = (rows.abs().amax(1) / hi).clamp(min=MIN_DELTA)
    assert (delta <= full * (1 + 1e-6)).all()
    assert (delta >= (0.21 * full).clamp(min=MIN_DELTA) * (1 - 1e-5)).all()
    for row, d, widest in zip(rows.numpy(), delta.numpy(), full.numpy()):
        wide = search_error(row, widest, F32(0), lo, hi)
        assert search_error(row, d, F32(0), lo, hi) <= wide * (1 + 1e-4) + 1e-12


@pytest.mark.parametrize("name", RANGE_SEARCH)
@pytest.mark.parametrize("symmetric", [False, True])
def test_rows_are_searched_independently(name, symmetric):
    rows = gaussian(6, 30) * torch.logspace(-2, 2, 6)[:, None]
    together = torch.stack(RANGE_SEARCH[name](summarize(rows), 4, symmetric, False))
    alone = torch.cat(
        [torch.stack(RANGE_SEARCH[name](summarize(row[None]), 4, symmetric, False)) for row in rows], dim=1
    )
    assert torch.equal(together, alone)


def test_error_search_on_a_part_of_the_values_keeps_the_ends_of_all(monkeypatch):
    row = torch.tensor([[0.0, 9.0, 1.0, 2.0, -3.0, 0.5, 1.5]])
    monkeypatch.setattr(ranges, "SEARCH_VALUES", 4)
    seen = row[:, ::3]
    errors = {
        step: search_error(seen[0].numpy(), step, zero, 0, 255)
        for step, zero in candidates(row[0].numpy(), 8, symmetric=False)
    }
    delta, _ = range_mse(summarize(row), 8, False, False)
    assert errors[delta.numpy()[0]] <= min(errors.values()) * (1 + 1e-5)


def test_error_search_on_a_part_of_an_image_sees_every_column(monkeypatch):
    image = gaussian(64, 64).pow(3)
    image[:, ::8] = 0  # the edge, and what else a stride of a power of two would see
    row = image.reshape(1, -1)
    whole, _ = range_mse(summarize(row), 2, True, False)
    monkeypatch.setattr(ranges, "SEARCH_VALUES", 512)
    part, _ = range_mse(summarize(row), 2, True, False)
    assert whole < 0.8 * row.abs().max()  # the widest range is not the best
    assert part.item() == pytest.approx(whole.item(), rel=0.2)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", RANGE_SEARCH)
def test_values_that_are_not_finite_have_no_range(name, bad):
    row = gaussian(1, 9)
    row[0, 4] = bad
    delta, zero_point = RANGE_SEARCH[name](summarize(row), 8, False, False)
    assert not (torch.isfinite(delta) & torch.isfinite(zero_point)).any()


@given(hnp.arrays(F32, st.tuples(st.integers(1, 3), st.integers(2, 30)), elements=WIDTH), st.data())
def test_parts_together_have_the_extremes_and_values_of_the_whole(array, data):
    rows = torch.from_numpy(array)
    cut = data.draw(st.integers(1, rows.shape[1] - 1))
    whole, parts = summarize(rows), joined([summarize(rows[:, :cut]), summarize(rows[:, cut:])])
    for a, b in zip(parts, whole, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_joined_parts_are_thinned_again(count, monkeypatch):
    monkeypatch.setattr(ranges, "SEARCH_VALUES", 50)
    x = gaussian(2, 70 * count)
    seen = joined([summarize(part) for part in x.chunk(count, 1)])
    assert 15 < seen.values.shape[1] <= 50
    assert torch.equal(seen.high, x.amax(1)) and torch.equal(seen.low, x.amin(1))
    assert all(v in x[i] for i, row in enumerate(seen.values) for v in row)


@given(ROWS, BITS, st.booleans(), st.integers(0, 99))
def test_the_weighted_search_takes_the_least_weighted_square(rows, bits, symmetric, seed):
    """Among ranges that shrink by 1 % of the one that contains zero, down to 41 %."""
    drawn = torch.randint(0, 4, rows.shape[1:], generator=torch.Generator().manual_seed(seed))
    weights = torch.tensor([0.0, 0.25, 1.0, 16.0])[drawn]
    delta, zero_point = range_weighted(rows, weights, bits, symmetric)
    lo, hi = code_bounds(bits, symmetric)
    assert ((lo <= zero_point) & (zero_point <= hi)).all()

    def error(row: torch.Tensor, d: torch.Tensor, z: torch.Tensor) -> float:
        return ((fake_quantize(row, d, z, lo, hi) - row).double().square() * weights).sum().item()

    for row, d, z in zip(rows, delta, zero_point):
        low, high = row.amin().clamp(max=0), row.amax().clamp(min=0)
        shrunk = (affine(low * (1 - i * 0.01), high * (1 - i * 0.01), bits, symmetric) for i in range(60))
        scale = (row.double().square() * weights).sum().item()
        assert error(row, d, z) <= min(error(row, *tried) for tried in shrunk) + 1e-5 * scale


def test_values_without_weight_do_not_widen_the_range():
    row = torch.tensor([[0.0, 1.0, 2.0, 3.0, 6.0]])
    narrow, wide = (range_weighted(row, torch.tensor([1.0, 1, 1, 1, w]), 2, False)[0].item() for w in (0.0, 100.0))
    assert narrow == pytest.approx(1.0) and wide > 1.9
