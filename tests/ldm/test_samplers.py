"""Latent samplers against golden numbers, closed forms, and PLMS written down once more."""

import contextlib
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion.dpm_solver import dpm_solver
from diffusion.samplers import final, walk
from diffusion.schedules import alphas_cumprod, beta_schedule
from ldm.guidance import guided
from ldm.samplers import ADAMS_BASHFORTH, ddim, latent_timesteps, plms
from tests.diffusion.test_samplers import LOG_SNR_ABAR, SAMPLERS, Gaussian, golden_eps, no_noise

SCHEDULES = {"beds": (0.0015, 0.0195), "sd": (0.00085, 0.012)}  # beta from and to
CASES = [("beds", 10), ("beds", 50), ("beds", 200), ("sd", 10), ("sd", 50)]
X_T = torch.tensor([[-1.3], [-0.3], [0.2], [1.7]], dtype=torch.float64)


def ddim_without_noise(model, x_T, timesteps, abar, **options):
    return ddim(model, x_T, timesteps, abar, eta=0, noise=no_noise, **options)


def dpm_solver_of_as_many_calls(model, x_T, timesteps, abar, **options):
    return dpm_solver(model, x_T, abar, len(timesteps), order=2, **options)


SAMPLERS_BY_NAME = {"ddim": ddim_without_noise, "plms": plms, "dpm_solver": dpm_solver_of_as_many_calls}
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS_BY_NAME.values(), ids=SAMPLERS_BY_NAME)


def abar_of(schedule):
    return alphas_cumprod(SAMPLERS[f"ldm.{schedule}.betas"])


# --- golden numbers


def conditional_eps(x, t, c):
    """The predictor behind the guided samples, recovered from them as its terms in c are; they have the scale 7.5."""
    return golden_eps(x, t) + 0.1 * c.mean((1, 2))[:, None, None, None]


def assert_golden(ours, key):
    golden = SAMPLERS[key]
    assert torch.dist(ours, golden) < 5e-6 * golden.norm()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_betas_are_linear_in_their_roots(schedule):
    ours = beta_schedule("quad", *SCHEDULES[schedule], 1000)
    torch.testing.assert_close(ours, SAMPLERS[f"ldm.{schedule}.betas"], rtol=1e-12, atol=0)


@pytest.mark.parametrize(("schedule", "steps"), CASES)
def test_schedule_is_the_golden_one(schedule, steps):
    case, abar = f"ldm.{schedule}.ddim{steps}", abar_of(schedule)
    timesteps = latent_timesteps(1000, steps)
    assert timesteps == SAMPLERS[f"{case}.timesteps"].tolist()
    walked = torch.tensor(walk(timesteps, abar, abar[0].item())[::-1])
    assert_golden(walked[:, 1], f"{case}.alphas")
    assert_golden(walked[:, 2], f"{case}.alphas_prev")


def abar_after(step, timesteps, abar):
    return abar[[0, *timesteps][timesteps.index(step.t)]].item()


@pytest.mark.parametrize(("schedule", "steps"), CASES)
def test_noise_has_the_golden_sigma_in_every_step(schedule, steps):
    abar, timesteps = abar_of(schedule), latent_timesteps(1000, steps)
    x_T = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    walked = ddim(lambda x, t: 0 * x, x_T, timesteps, abar, eta=1.0, noise=torch.ones_like)
    # without eps, x_prev = sqrt(abar_prev) x0 + sigma z
    sigmas = [(s.x_prev - abar_after(s, timesteps, abar) ** 0.5 * s.x0).item() for s in walked]
    golden = SAMPLERS[f"ldm.{schedule}.ddim{steps}.sigmas_eta1"].double()
    torch.testing.assert_close(torch.tensor(sigmas[::-1], dtype=torch.float64), golden, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("schedule", "steps"), CASES)
def test_ddim_is_the_golden_one(schedule, steps):
    x_T, timesteps, abar = SAMPLERS["x_T"], latent_timesteps(1000, steps), abar_of(schedule)
    case = f"ldm.{schedule}.ddim{steps}"
    assert_golden(final(ddim_without_noise(golden_eps, x_T, timesteps, abar)), f"{case}.sample")
    model = guided(conditional_eps, SAMPLERS["c"], SAMPLERS["uc"], 7.5)
    assert_golden(final(ddim_without_noise(model, x_T, timesteps, abar)), f"{case}.guided_sample")


@pytest.mark.parametrize(("schedule", "steps"), CASES)
def test_plms_is_the_golden_one(schedule, steps):
    model = guided(conditional_eps, SAMPLERS["c"], SAMPLERS["uc"], 7.5)
    ours = final(plms(model, SAMPLERS["x_T"], latent_timesteps(1000, steps), abar_of(schedule)))
    assert_golden(ours, f"ldm.{schedule}.plms{steps}.guided_sample")


# --- timesteps


@given(st.integers(6, 1000), st.data(), st.sampled_from(["uniform", "quad"]))
def test_timesteps_ascend_within_the_schedule(num_timesteps, data, skip_type):
    steps = data.draw(st.integers(1, num_timesteps))
    try:
        timesteps = latent_timesteps(num_timesteps, steps, skip_type)
    except ValueError:
        assert skip_type == "uniform" and (num_timesteps - 1) % (num_timesteps // steps) == 0
    else:
        assert timesteps == sorted(timesteps) and timesteps[0] == 1 and timesteps[-1] < num_timesteps


def test_quad_timesteps_are_squares_and_one():
    assert latent_timesteps(1000, 5, "quad") == [1, 51, 201, 451, 801]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ((1000, 0), "steps=0"),
        ((1000, 1001), "steps=1001"),
        ((1000, 1000), "steps=1000 leads to timestep 1000, but the last is 999: use 500$"),
        ((1000, 3), "steps=3 leads to timestep 1000, but the last is 999: use 2 or 4$"),
        ((1, 1), "no number of steps fits"),
        ((1000, 10, "cosine"), "skip_type"),
    ],
)
def test_timesteps_outside_the_schedule_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        latent_timesteps(*bad)


@given(st.integers(3, 120), st.data())
def test_the_nearest_numbers_of_steps_that_fit_are_named(num_timesteps, data):
    """As a search through all of them finds them."""
    fitting = []
    for steps in range(1, num_timesteps + 1):
        with contextlib.suppress(ValueError):
            latent_timesteps(num_timesteps, steps)
            fitting.append(steps)
    steps = data.draw(st.integers(1, 2 * num_timesteps).filter(lambda n: n not in fitting))
    nearest = [*[n for n in fitting if n < steps][-1:], *[n for n in fitting if n > steps][:1]]
    with pytest.raises(ValueError, match=f"use {' or '.join(map(str, nearest))}$"):
        latent_timesteps(num_timesteps, steps)


# --- accuracy

# sqrt((1 - abar) / abar), in which the ODE's slope is eps, in equal steps
EVEN_ABAR = 1 / (1 + torch.linspace(0.05, 0.6, 1025, dtype=torch.float64) ** 2)


@pytest.mark.parametrize(
    ("sampler", "abar", "order"),
    [
        (ddim_without_noise, LOG_SNR_ABAR, 1),
        (plms, LOG_SNR_ABAR, 2),  # where the steps differ, the weights of Adams and Bashforth are pseudo
        (plms, EVEN_ABAR, 3),  # not 4: the first two steps have local errors of the third order
    ],
)
def test_converges_to_the_flow_at_its_order(sampler, abar, order):
    model = Gaussian(0.4, 0.6, abar)
    exact = model.flow(X_T, abar[-1].item(), abar[0].item())

    def error(n):
        return (final(sampler(model, X_T, range(1024 // n, 1025, 1024 // n), abar)) - exact).abs().max().item()

    assert math.log2(error(128) / error(256)) == pytest.approx(order, abs=0.15)


def test_adams_bashforth_integrates_polynomials():
    # the weights of order n integrate from 0 to 1 what goes through values at 0, -1, ..., 1 - n
    for n, weights in enumerate(ADAMS_BASHFORTH, start=1):
        nodes = -np.arange(n)
        moments = [1 / (power + 1) for power in range(n)]
        np.testing.assert_allclose(np.vander(nodes, increasing=True).T @ weights, moments, rtol=1e-12)


@pytest.mark.parametrize("steps", [2, 4, 5, 8])
def test_plms_is_adams_bashforth_along_the_noise_to_signal_ratio(steps):
    abar, timesteps = abar_of("sd"), latent_timesteps(1000, steps)
    abar = torch.cat([abar[:1], abar[timesteps]]).flip(0).numpy()
    ratio = np.sqrt(1 / abar - 1)  # dy / dratio = eps, y = x / sqrt(abar)
    times = [*timesteps[::-1], 0]

    def eps(y, i):
        x = torch.from_numpy(y * abar[i] ** 0.5)
        return golden_eps(x, torch.full((2,), times[i])).numpy()

    x_T = SAMPLERS["x_T"].double()
    y = x_T.numpy() / abar[0] ** 0.5
    h, slopes = np.diff(ratio), [eps(y, 0)]
    y = y + h[0] * (slopes[0] + eps(y + h[0] * slopes[0], 1)) / 2
    for i in range(1, steps):
        slopes.append(eps(y, i))
        n = min(i + 1, 4)
        weights = np.linalg.solve(np.vander(-np.arange(n), increasing=True).T, 1 / np.arange(1, n + 1))
        y = y + h[i] * sum(w * s for w, s in zip(weights, slopes[::-1]))
    ours = final(plms(golden_eps, x_T, timesteps, abar_of("sd")))
    np.testing.assert_allclose(ours.numpy(), y * abar[-1] ** 0.5, rtol=1e-9, atol=1e-9)


def test_ddim_with_all_noise_samples_the_posterior():
    # q(x_prev | x_t, x0), Ho et al. 2020, equations 6 and 7; the last step too
    abar, timesteps = abar_of("beds"), [1, 401, 801]
    z = torch.tensor([[-1.0], [0.0], [0.5], [2.0]], dtype=torch.float64)
    for step in ddim(Gaussian(0.3, 0.5, abar), X_T, timesteps, abar, eta=1.0, noise=lambda x: z):
        a, prev = abar[int(step.t)].item(), abar_after(step, timesteps, abar)
        beta = 1 - a / prev
        mean = (prev**0.5 * beta * step.x0 + (1 - beta) ** 0.5 * (1 - prev) * step.x_t) / (1 - a)
        torch.testing.assert_close(step.x_prev, mean + ((1 - prev) / (1 - a) * beta) ** 0.5 * z)


# --- guidance, batches


@every_sampler
def test_guidance_of_scale_one_is_none_and_of_scale_zero_is_unconditional(sampler):
    x_T, c, uc = (SAMPLERS[key].double() for key in ("x_T", "c", "uc"))

    def sample(*conditions):
        return final(sampler(guided(conditional_eps, *conditions), x_T, latent_timesteps(1000, 10), abar_of("sd")))

    torch.testing.assert_close(sample(c, uc, 1.0), sample(c))
    torch.testing.assert_close(sample(c, uc, 0.0), sample(uc))
    assert torch.dist(sample(c), sample(uc)) > 0.01
    gap = torch.dist(sample(c, uc, 2.0), sample(uc)) / torch.dist(sample(c), sample(uc))
    assert gap == pytest.approx(2, rel=0.5)


@every_sampler
def test_images_of_a_batch_do_not_know_of_each_other(sampler):
    x_T, c, uc = (SAMPLERS[key].double() for key in ("x_T", "c", "uc"))

    def sample(rows):
        model = guided(conditional_eps, c[rows], uc[rows], 3.0)
        return final(sampler(model, x_T[rows], latent_timesteps(1000, 10), abar_of("sd")))

    torch.testing.assert_close(sample([0, 1]), torch.cat([sample([0]), sample([1])]), rtol=1e-12, atol=1e-12)


# --- corrections and steps


def harm(index):
    """Slope and bias of the error at a call."""
    return 0.1 * math.sin(index), 0.05 * index


@every_sampler
def test_correction_takes_known_errors_out(sampler):
    timesteps, abar = latent_timesteps(1000, 8), abar_of("sd")
    calls = []

    def quantized(x, t):
        k, bias = harm(len(calls))
        calls.append(t[0].item())
        return (1 + k) * golden_eps(x, t) + bias

    def correct(index, t, eps):
        assert t == pytest.approx(calls[index])
        k, bias = harm(index)
        return (eps - bias) / (1 + k), 0.3

    x_T = SAMPLERS["x_T"].double()
    right = list(sampler(golden_eps, x_T, timesteps, abar))
    corrected = list(sampler(quantized, x_T, timesteps, abar, correct=correct))
    for ours, theirs in zip(corrected, right, strict=True):
        assert (ours.index, ours.t) == (theirs.index, theirs.t)
        for name in ("x_t", "eps", "x0", "x_prev"):
            torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_plms_shows_every_call(steps):
    calls = []

    def model(x, t):
        calls.append((x, t))
        return golden_eps(x, t)

    timesteps, x_T = latent_timesteps(1000, steps)[-steps:], SAMPLERS["x_T"]
    walked = list(plms(model, x_T, timesteps, abar_of("sd")))
    times = [*timesteps[::-1], 0]
    assert [s.t for s in walked] == [times[0], times[1], *times[1:-1]]
    assert [s.index for s in walked] == list(range(steps + 1))
    assert walked[0].x_t is x_T and all(b.x_t is a.x_prev for a, b in pairwise(walked))
    for step, (x, t) in zip(walked, calls, strict=True):
        assert step.x_t is x and torch.equal(t, torch.tensor([step.t] * 2)) and t.dtype == torch.int64
        assert torch.equal(step.eps, golden_eps(x, t))
        abar = abar_of("sd")[step.t].item()
        torch.testing.assert_close(abar**0.5 * step.x0 + (1 - abar) ** 0.5 * step.eps, x)


@every_sampler
def test_samples_keep_their_type_and_carry_no_gradient(sampler):
    weight = torch.ones((), requires_grad=True)
    walked = sampler(
        lambda x, t: weight * golden_eps(x, t), SAMPLERS["x_T"], latent_timesteps(1000, 4), abar_of("sd").float()
    )
    sample = final(walked)
    assert sample.dtype == torch.float32 and not sample.requires_grad


@pytest.mark.parametrize("sampler", [ddim_without_noise, plms])
@pytest.mark.parametrize("timesteps", [[], [-1, 5], [5, 1000], [5, 3]])
def test_timesteps_outside_the_schedule_are_refused_by_samplers(sampler, timesteps):
    with pytest.raises(ValueError, match="timesteps must ascend"):
        final(sampler(golden_eps, SAMPLERS["x_T"], timesteps, abar_of("sd")))
