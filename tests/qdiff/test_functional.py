"""The quantization mathematics against loops over single numbers, closed forms and properties."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qdiff.functional import code_bounds, fake_quantize, lp_loss, mean_power, relative_squared_error
from tests.qdiff.loops import BITS, ROWS, gaussian, quantize_loop


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


def plain_fake_quantize(x, delta, zero_point, lo, hi):
    """The formula with a straight-through rounding, whose gradients autograd finds."""
    scaled = x / delta
    rounded = scaled + (scaled.round() - scaled).detach()
    low, high = (lo - zero_point).expand_as(x), (hi - zero_point).expand_as(x)
    return torch.where(rounded < low, low, torch.where(rounded > high, high, rounded)) * delta


@pytest.mark.parametrize("learned", ["x", "delta", "both"])
@pytest.mark.parametrize("shape", [(), (3, 1, 1), (5, 1), (3, 1, 4)])
def test_gradients_are_those_of_the_plain_formula(shape, learned):
    x, upstream = gaussian(3, 5, 4).double(), gaussian(3, 5, 4, seed=1).double()
    delta = (0.1 + gaussian(*shape, seed=2).abs()).double()
    x.requires_grad_(learned != "delta")
    delta.requires_grad_(learned != "x")
    variables = [v for v in (x, delta) if v.requires_grad]
    zero_point = torch.full(shape, 3.0, dtype=torch.float64)
    fused, plain = (f(x, delta, zero_point, 0, 7) for f in (fake_quantize, plain_fake_quantize))
    torch.testing.assert_close(fused, plain)
    for a, b in zip(torch.autograd.grad(fused, variables, upstream), torch.autograd.grad(plain, variables, upstream)):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


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


@pytest.mark.parametrize("p", [2.0, 2.4])
@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (2, 3, 4, 5)])
def test_loss_sums_over_channels_and_averages_over_the_rest(p, shape):
    pred, target = gaussian(*shape), gaussian(*shape, seed=1)
    total = math.fsum(abs(a - b) ** p for a, b in zip(pred.flatten().tolist(), target.flatten().tolist()))
    assert lp_loss(pred, target, p).item() == pytest.approx(total / (pred.numel() / shape[1]), rel=1e-5)


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 2.4, 3.0, 20.0])
def test_the_mean_power_and_its_gradient(p):
    x = gaussian(4, 5).double().requires_grad_()
    torch.testing.assert_close(mean_power(x, p), x.abs().pow(p).mean())
    assert torch.autograd.gradcheck(lambda x: mean_power(x, p), x)


@pytest.mark.parametrize("p", [1.0, 2.0, 2.4])
def test_an_error_of_zero_has_no_gradient(p):
    x = torch.zeros(3, requires_grad=True)
    mean_power(x, p).backward()
    assert x.grad.tolist() == [0, 0, 0]


def test_the_relative_squared_error_in_closed_form():
    x = torch.tensor([3.0, 4.0])
    assert relative_squared_error(1.1 * x, x) == pytest.approx(0.01)
    assert relative_squared_error(x.half() + 1, x.half()) == pytest.approx(2 / 25)
    assert relative_squared_error(x, 0 * x) == torch.inf
    assert relative_squared_error(0 * x, 0 * x) != relative_squared_error(0 * x, 0 * x)  # nan
