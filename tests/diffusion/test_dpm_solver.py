"""DPM-Solver++ against an exactly solvable flow, the paper's algorithms written out again, and DDIM."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion.dpm_plan import singlestep_orders
from diffusion.dpm_solver import dpm_solver
from diffusion.samplers import final, generalized
from diffusion.schedules import alphas_cumprod, beta_schedule

ABAR = alphas_cumprod(beta_schedule("linear", 0.0001, 0.02, 1000))
X_T = torch.tensor([[-1.3], [-0.3], [0.2], [1.7]], dtype=torch.float64)


def log_alpha_at(t, abar):
    """log alpha between the timesteps, by numpy; abar is an array."""
    return np.interp(t, np.arange(len(abar)), 0.5 * np.log(abar))


def wavy_eps(x, t):
    """Any smooth nonlinear predictor."""
    return 0.6 * torch.cos(t.to(x.dtype) / 700)[:, None] * x + 0.3 * torch.sin(3 * x)


class Mixture:
    """Data from two Gaussians on a line, with the exact noise predictor.

    The flow of the ODE keeps the cumulative distribution function of x_t, which is known.
    """

    weight = torch.tensor([0.4, 0.6], dtype=torch.float64)
    mu = torch.tensor([-0.5, 0.7], dtype=torch.float64)
    s = torch.tensor([0.3, 0.2], dtype=torch.float64)

    def __init__(self, abar):
        self.abar = abar.numpy()

    def normal(self, x, abar):
        """Variances of the two parts at signal power abar, and x in their standard deviations."""
        var = abar * self.s**2 + 1 - abar
        return var, (x - abar**0.5 * self.mu) / var**0.5  # x has a last dimension 1

    def __call__(self, x, t):
        abar = math.exp(2 * log_alpha_at(t[0].item(), self.abar))
        var, z = self.normal(x, abar)
        part = torch.softmax(self.weight.log() - var.log() / 2 - z**2 / 2, dim=-1)
        return (1 - abar) ** 0.5 * (part * z / var**0.5).sum(-1, keepdim=True)  # -sqrt(1 - abar) grad log p

    def cdf(self, x, abar):
        return (self.weight * torch.special.ndtr(self.normal(x, abar)[1])).sum(-1, keepdim=True)

    def flow(self, x, abar_from, abar_to):
        quantile = self.cdf(x, abar_from)
        low, high = torch.full_like(x, -9), torch.full_like(x, 9)
        for _ in range(60):
            middle = (low + high) / 2
            below = self.cdf(middle, abar_to) < quantile
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return low


# --- accuracy


@pytest.mark.parametrize("method", ["multistep", "singlestep"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_converges_at_its_order(method, order):
    abar = torch.linspace(3, -4, 1001, dtype=torch.float64).mul(2).sigmoid()
    model = Mixture(abar)
    exact = model.flow(X_T, abar[-1].item(), abar[0].item())
    # 2 more than a multiple of 3, so that singlestep ends 3, 2 and not 3, 1
    coarse, fine = 98, 194

    def error(n):
        options = {"order": order, "method": method, "skip_type": "logSNR", "lower_order_final": False}
        return (final(dpm_solver(model, X_T, abar, n, **options)) - exact).abs().max().item()

    slope = math.log(error(coarse) / error(fine)) / math.log(fine / coarse)
    assert order - 0.25 < slope < order + 0.35


@pytest.mark.parametrize("skip_type", ["time_quadratic", "logSNR"])
@pytest.mark.parametrize("method", ["multistep", "singlestep"])
def test_higher_order_is_closer_on_the_real_schedule(method, skip_type):
    model = Mixture(ABAR)
    exact = model.flow(X_T, ABAR[-1].item(), ABAR[0].item())

    def error(order):
        return (final(dpm_solver(model, X_T, ABAR, 60, order=order, method=method, skip_type=skip_type)) - exact).norm()

    errors = [error(order).item() for order in (1, 2, 3)]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.15 * errors[0]


def test_first_order_is_ddim():
    abar = alphas_cumprod(beta_schedule("linear", 0.0001, 0.02, 1001))
    ours = list(dpm_solver(wavy_eps, X_T, abar, 10, order=1))
    *ddim, _ = generalized(wavy_eps, X_T, range(0, 1001, 100), abar, eta=0, noise=None)
    assert [round(s.t, 9) for s in ours] == [s.t for s in ddim]
    for a, b in zip(ours, ddim, strict=True):
        torch.testing.assert_close(a.x0, b.x0, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(a.x_prev, b.x_prev, rtol=1e-9, atol=1e-9)


# --- the paper's algorithms


class Grid:
    """alpha, sigma, lambda at given times, by numpy."""

    def __init__(self, t, abar=ABAR):
        log_alpha = log_alpha_at(t, abar.numpy())
        self.t, self.alpha = t, np.exp(log_alpha)
        self.sigma = np.sqrt(1 - self.alpha**2)
        self.lam = np.log(self.alpha / self.sigma)

    def x0(self, i, x):
        eps = wavy_eps(x, torch.full((len(x),), self.t[i], dtype=torch.float64))
        return (x - self.sigma[i] * eps) / self.alpha[i]


def test_second_order_multistep_is_algorithm_2():
    steps = 12
    g = Grid(np.linspace(999, 0, steps + 1))
    x, previous = X_T, None
    for i in range(1, steps + 1):
        current = g.x0(i - 1, x)
        d, h = current, g.lam[i] - g.lam[i - 1]
        if 1 < i < steps:  # the last step is of first order
            r = (g.lam[i - 1] - g.lam[i - 2]) / h
            d = (1 + 1 / (2 * r)) * current - 1 / (2 * r) * previous
        x = g.sigma[i] / g.sigma[i - 1] * x - g.alpha[i] * (np.exp(-h) - 1) * d
        previous = current
    torch.testing.assert_close(final(dpm_solver(wavy_eps, X_T, ABAR, steps, order=2)), x, rtol=1e-9, atol=1e-9)


def test_second_order_singlestep_is_algorithm_1():
    outer = Grid(np.linspace(999, 0, 7))
    middle_lam = (outer.lam[1:] + outer.lam[:-1]) / 2
    fine = np.linspace(999, 0, 200001)
    g = Grid(np.sort(np.concatenate([outer.t, np.interp(middle_lam, Grid(fine).lam, fine)]))[::-1])
    x = X_T
    for i in range(0, 12, 2):
        h = g.lam[i + 2] - g.lam[i]
        m = g.x0(i, x)
        u = g.sigma[i + 1] / g.sigma[i] * x - g.alpha[i + 1] * (np.exp(-h / 2) - 1) * m
        x = g.sigma[i + 2] / g.sigma[i] * x - g.alpha[i + 2] * (np.exp(-h) - 1) * g.x0(i + 1, u)  # r = 1/2
    # with 12 calls the six intervals are those between every second of 13 points
    ours = final(dpm_solver(wavy_eps, X_T, ABAR, 12, order=2, method="singlestep"))
    torch.testing.assert_close(ours, x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lower_order_final", [True, False])
def test_lower_order_final_makes_the_last_update_first_order(lower_order_final):
    step = list(dpm_solver(wavy_eps, X_T, ABAR, 8, lower_order_final=lower_order_final))[-1]
    g = Grid(np.array([step.t, 0.0]))
    first_order = g.sigma[1] / g.sigma[0] * step.x_t - g.alpha[1] * np.expm1(g.lam[0] - g.lam[1]) * step.x0
    assert torch.allclose(step.x_prev, first_order, rtol=1e-9) == lower_order_final


# --- points and calls


def test_spacing_of_the_points():
    n, T = 10, 1000
    expected = {
        "time_uniform": np.linspace(T - 1, 0, n + 1),
        # Lu et al. count time (t + 1) / T from 1 to 1 / T
        "time_quadratic": T * np.linspace(1, (1 / T) ** 0.5, n + 1) ** 2 - 1,
    }
    for skip_type, times in expected.items():
        steps = list(dpm_solver(wavy_eps, X_T, ABAR, n, skip_type=skip_type))
        np.testing.assert_allclose([s.t for s in steps], times[:-1], atol=1e-6)
    lam = Grid(np.array([s.t for s in dpm_solver(wavy_eps, X_T, ABAR, n, skip_type="logSNR")])).lam
    ends = Grid(np.array([T - 1.0, 0.0])).lam
    np.testing.assert_allclose(lam, np.linspace(*ends, n + 1)[:-1], atol=1e-9)


@pytest.mark.parametrize("skip_type", ["time_uniform", "logSNR"])
def test_points_within_a_singlestep_update_divide_lambda_evenly(skip_type):
    times = [s.t for s in dpm_solver(wavy_eps, X_T, ABAR, 9, method="singlestep", skip_type=skip_type)]
    g, ends = Grid(np.array([*times, 0.0])), [0, 3, 6, 8, 9]  # orders 3, 3, 2, 1
    if skip_type == "logSNR":  # the updates have equal lengths
        np.testing.assert_allclose(g.lam[ends], np.linspace(g.lam[0], g.lam[-1], 5), atol=1e-9)
    else:  # each call has an equal share
        np.testing.assert_allclose(g.t[ends], np.linspace(999, 0, 10)[ends], atol=1e-6)
    for first, last in pairwise(ends):
        gaps = np.diff(g.lam[first : last + 1])
        np.testing.assert_allclose(gaps, gaps.mean())


@given(st.integers(1, 200), st.sampled_from([1, 2, 3]))
def test_singlestep_orders_use_up_the_steps(steps, order):
    orders = singlestep_orders(steps, order)
    assert sum(orders) == steps
    assert orders == sorted(orders, reverse=True) and orders[0] <= order


def test_singlestep_orders_as_the_paper_plans_them():
    assert [singlestep_orders(n, 3) for n in range(1, 9)] == [
        [1], [2], [2, 1], [3, 1], [3, 2], [3, 2, 1], [3, 3, 1], [3, 3, 2]
    ]  # fmt: skip
    assert [singlestep_orders(n, 2) for n in (1, 4, 5)] == [[1], [2, 2], [2, 2, 1]]


@pytest.mark.parametrize("method", ["multistep", "singlestep"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20])
def test_calls_the_network_once_for_each_step(method, steps):
    calls = []

    def model(x, t):
        calls.append(t)
        return wavy_eps(x, t)

    done = list(dpm_solver(model, X_T.float(), ABAR, steps, method=method))
    assert len(calls) == len(done) == steps
    assert all(t.shape == (4,) and t.dtype == torch.float32 for t in calls)
    assert done[0].t == pytest.approx(999)
    assert [s.index for s in done] == list(range(steps))
    assert all(b.x_t is a.x_prev for a, b in pairwise(done))
    assert done[-1].x_prev.dtype == torch.float32 and done[-1].x_prev.isfinite().all()


def test_predictions_are_corrected_call_by_call():
    walk = list(dpm_solver(lambda x, t: 3 * wavy_eps(x, t), X_T, ABAR, 7, correct=lambda i, t, eps: (eps / 3, 1.0)))
    plain = list(dpm_solver(wavy_eps, X_T, ABAR, 7))
    for ours, theirs in zip(walk, plain, strict=True):
        torch.testing.assert_close(ours.eps, theirs.eps)
        torch.testing.assert_close(ours.x_prev, theirs.x_prev)
    seen = []
    final(dpm_solver(wavy_eps, X_T, ABAR, 7, correct=lambda i, t, eps: (seen.append((i, t)) or eps, 0.0)))
    assert seen == [(s.index, s.t) for s in plain]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps=0"),
        ({"order": 4}, "order=4"),
        ({"method": "adaptive"}, "method 'adaptive'"),
        ({"skip_type": "quad"}, "skip_type 'quad'"),
        ({"alphas_cumprod": torch.tensor([0.9, 0.9, 0.1])}, "alphas_cumprod"),
        ({"alphas_cumprod": torch.tensor([0.9, 0.5, 0.0])}, "alphas_cumprod"),
        ({"alphas_cumprod": torch.tensor([1.0, 0.5])}, "alphas_cumprod"),
    ],
)
def test_refuses_impossible_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        next(dpm_solver(**{"model": wavy_eps, "x_T": X_T, "alphas_cumprod": ABAR, "steps": 5, **options}))
