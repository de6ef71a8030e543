"""The quantization mathematics against loops over single numbers, closed forms and properties."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from qdiff import functional
from qdiff.functional import MIN_DELTA, RANGE_SEARCH, affine, code_bounds, fake_quantize, lp_loss, range_mse, round_ste

F32 = np.float32
WIDTH = st.floats(-1000, 1000, width=32, allow_subnormal=False)
ROWS = hnp.arrays(F32, st.tuples(st.integers(1, 4), st.integers(1, 12)), elements=WIDTH).map(torch.from_numpy)
BITS = st.sampled_from([2, 3, 4, 8])


def quantize_number(x: F32, delta: F32, zero_point: F32, lo: int, hi: int) -> F32:
    """One number, written from the definition."""
    code = min(max(np.rint(x / delta) + zero_point, lo), hi)
    return F32(code - zero_point) * delta


def quantize_loop(x: Tensor, delta: Tensor, zero_point: Tensor, lo: int, hi: int) -> list[F32]:
    d, z = (v.expand_as(x).flatten().numpy() for v in (delta, zero_point))
    return [quantize_number(v, d[i], z[i], lo, hi) for i, v in enumerate(x.flatten().numpy())]


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


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_bounds_have_as_many_codes_as_the_bits_can_hold(bits):
    for symmetric in (False, True):
        lo, hi = code_bounds(bits, symmetric)
        assert hi - lo + 1 == 2**bits
    assert code_bounds(bits, False)[0] == 0
    assert code_bounds(bits, True) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


@given(ROWS, st.floats(2**-7, 100, width=32), st.integers(-5, 300), BITS, st.booleans())
def test_fake_quantization_is_the_loop_over_numbers(x, delta, zero_point, bits, symmetric):
    arguments = torch.tensor(delta), torch.tensor(float(zero_point)), *code_bounds(bits, symmetric)
    assert fake_quantize(x, *arguments).flatten().tolist() == quantize_loop(x, *arguments)


def test_each_channel_has_its_own_step_and_zero_point():
    x, delta, zero_point = gaussian(3, 4, 2), torch.tensor([0.1, 0.5, 2.0]), torch.tensor([3.0, 0.0, 15.0])
    arguments = delta.reshape(3, 1, 1), zero_point.reshape(3, 1, 1), 0, 15
    assert fake_quantize(x, *arguments).flatten().tolist() == quantize_loop(x, *arguments)


def test_ties_round_to_even():
    x = torch.tensor([-1.5, -0.5, 0.5, 1.5, 2.5])
    assert fake_quantize(x, torch.tensor(1.0), torch.tensor(2.0), 0, 15).tolist() == [-2, -0.0, 0, 2, 2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@given(seed=st.integers(0, 999), learned=st.sampled_from(["x", "delta", "both"]))
def test_the_path_without_gradient_gives_the_same_bits(dtype, seed, learned):
    x = gaussian(5, 7, seed=seed).to(dtype)
    delta, zero_point = torch.tensor(0.037), torch.tensor(100.0)
    with torch.no_grad():
        fast = fake_quantize(x, delta, zero_point, 0, 255)
    x.requires_grad_(learned != "delta")
    delta.requires_grad_(learned != "x")
    slow = fake_quantize(x, delta, zero_point, 0, 255)
    assert slow.requires_grad
    assert not fast.requires_grad
    assert slow.dtype == fast.dtype == dtype
    assert torch.equal(slow, fast)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_has_the_codes_of_float32(dtype):
    x = gaussian(1000).to(dtype)
    arguments = torch.tensor(0.031), torch.tensor(120.0), 0, 255
    assert torch.equal(fake_quantize(x, *arguments), fake_quantize(x.float(), *arguments).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_of_half_precision_do_not_overflow(dtype):
    one = torch.ones(1, dtype=dtype)
    assert fake_quantize(one, torch.tensor(1 / 65535), torch.tensor(0.0), 0, 65535).item() == 1


def test_float64_is_computed_in_float64():
    x = torch.tensor([1 + 2.0**-40], dtype=torch.float64)
    delta = torch.tensor(2.0**-41, dtype=torch.float64)
    assert torch.equal(fake_quantize(x, delta, torch.zeros_like(delta), -(2**50), 2**50), x)


def test_rounding_passes_the_gradient_straight_through():
    x = gaussian(10).requires_grad_()
    upstream = gaussian(10, seed=1)
    round_ste(x).backward(upstream)
    assert torch.equal(round_ste(x), x.round())
    assert torch.equal(x.grad, upstream)


@pytest.mark.parametrize(("bits", "symmetric"), [(2, False), (4, False), (8, False), (2, True), (8, True)])
def test_gradients_are_those_of_lsq_also_at_the_first_and_last_code(bits, symmetric):
    x = (3 * gaussian(200)).requires_grad_()
    delta = torch.tensor(0.75 if bits < 8 else 0.02, requires_grad=True)
    zero_point = torch.tensor(0.0 if symmetric else 2.0 ** (bits - 1))
    lo, hi = code_bounds(bits, symmetric)
    upstream = gaussian(200, seed=1)
    fake_quantize(x, delta, zero_point, lo, hi).backward(upstream)
    to_x, to_delta, ends = [], 0.0, 0
    for v, g in zip(x.tolist(), upstream.tolist()):
        rounded = round(v / delta.item())
        code = rounded + int(zero_point)
        ends += code in (lo, hi)
        to_x.append(g if lo <= code <= hi else 0.0)
        bound = min(max(code, lo), hi) - int(zero_point)
        to_delta += g * (rounded - v / delta.item() if lo <= code <= hi else bound)
    assert ends
    assert any(g == 0 for g in to_x)
    torch.testing.assert_close(x.grad, torch.tensor(to_x))
    assert delta.grad.item() == pytest.approx(to_delta, rel=1e-4)


def test_each_channels_step_gets_its_own_gradient():
    x, upstream = gaussian(3, 5), gaussian(3, 5, seed=1)
    delta = torch.tensor([[0.1], [0.3], [1.0]], requires_grad=True)
    fake_quantize(x, delta, torch.full((3, 1), 2.0), 0, 7).backward(upstream)
    for i in range(3):
        alone = delta[i, 0].detach().requires_grad_()
        fake_quantize(x[i], alone, torch.tensor(2.0), 0, 7).backward(upstream[i])
        torch.testing.assert_close(delta.grad[i, 0], alone.grad)


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
    delta, zero_point = search(torch.zeros(1, 4), 4, symmetric, False)
    assert delta.item() == pytest.approx(MIN_DELTA)
    assert zero_point.item() == 0


@given(ROWS, BITS, st.booleans())
def test_minmax_leaves_zero_exact_and_errs_by_half_a_step_at_most(rows, bits, symmetric):
    delta, zero_point = RANGE_SEARCH["minmax"](rows, bits, symmetric, False)
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
        delta, zero_point = RANGE_SEARCH[name](rows, bits, False, True)
        assert not zero_point.any()
        expected = (rows.amax(1) / (2**bits - 1)).clamp(min=MIN_DELTA)
        torch.testing.assert_close(delta, expected)
    delta, zero_point = RANGE_SEARCH["mse"](rows + 1, bits, False, True)
    assert not zero_point.any()
    widest = (rows + 1).amax(1) / (2**bits - 1)
    assert ((0.2 * widest < delta) & (delta < 1.01 * widest)).all()


@given(ROWS, BITS)
def test_max_takes_the_step_from_the_raw_range_and_the_zero_point_from_the_one_with_zero(rows, bits):
    delta, zero_point = RANGE_SEARCH["max"](rows, bits, False, False)
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
    delta, zero_point = range_mse(rows, bits, symmetric, False)
    for row, d, z in zip(rows.numpy(), delta.numpy(), zero_point.numpy()):
        tried = candidates(row, bits, symmetric)
        assert any(math.isclose(d, step, rel_tol=1e-6) and z == zero for step, zero in tried)
        best = min(search_error(row, *candidate, lo, hi) for candidate in tried)
        assert search_error(row, d, z, lo, hi) <= best * (1 + 1e-5)


def test_the_narrowest_range_of_the_error_search_is_21_percent():
    row = torch.tensor([[1.0] + 300 * [0.2]])  # the many would have a step of 0.2
    delta, _ = range_mse(row, 2, True, False)
    assert delta.item() == pytest.approx(0.21)


@given(ROWS, BITS)
def test_symmetric_error_search_covers_both_signs(rows, bits):
    lo, hi = code_bounds(bits, True)
    delta, zero_point = range_mse(rows, bits, True, False)
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
    together = torch.stack(RANGE_SEARCH[name](rows, 4, symmetric, False))
    alone = torch.cat([torch.stack(RANGE_SEARCH[name](row[None], 4, symmetric, False)) for row in rows], dim=1)
    assert torch.equal(together, alone)


def test_error_search_on_a_part_of_the_values_keeps_the_ends_of_all(monkeypatch):
    row = torch.tensor([[0.0, 9.0, 1.0, 2.0, -3.0, 0.5, 1.5]])
    monkeypatch.setattr(functional, "SEARCH_VALUES", 4)
    seen = row[:, ::3]
    errors = {
        step: search_error(seen[0].numpy(), step, zero, 0, 255)
        for step, zero in candidates(row[0].numpy(), 8, symmetric=False)
    }
    delta, _ = range_mse(row, 8, False, False)
    assert errors[delta.numpy()[0]] <= min(errors.values()) * (1 + 1e-5)


def test_error_search_on_a_part_of_a_picture_sees_every_column(monkeypatch):
    picture = gaussian(64, 64).pow(3)
    picture[:, ::8] = 0  # the edge, and what else a stride of a power of two would see
    row = picture.reshape(1, -1)
    whole, _ = range_mse(row, 2, True, False)
    monkeypatch.setattr(functional, "SEARCH_VALUES", 512)
    part, _ = range_mse(row, 2, True, False)
    assert whole < 0.8 * row.abs().max()  # the widest range is not the best
    assert part.item() == pytest.approx(whole.item(), rel=0.2)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", RANGE_SEARCH)
def test_values_that_are_not_finite_have_no_range(name, bad):
    row = gaussian(1, 9)
    row[0, 4] = bad
    delta, zero_point = RANGE_SEARCH[name](row, 8, False, False)
    assert not (torch.isfinite(delta) & torch.isfinite(zero_point)).any()


@pytest.mark.parametrize("p", [2.0, 2.4])
@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (2, 3, 4, 5)])
def test_loss_sums_over_channels_and_averages_over_the_rest(p, shape):
    pred, target = gaussian(*shape), gaussian(*shape, seed=1)
    total = math.fsum(abs(a - b) ** p for a, b in zip(pred.flatten().tolist(), target.flatten().tolist()))
    assert lp_loss(pred, target, p).item() == pytest.approx(total / (pred.numel() / shape[1]), rel=1e-5)
