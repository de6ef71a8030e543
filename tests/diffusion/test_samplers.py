"""Samplers against golden numbers, and against distributions whose exact noise predictor is known."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from diffusion.samplers import ddim_coefficients, ddpm_noisy, final, generalized, timestep_sequence, walk
from diffusion.schedules import alphas_cumprod, beta_schedule
from diffusion.steps import Step
from tests.golden_networks import GOLDEN

SAMPLERS = load_file(GOLDEN / "samplers.safetensors")
ABAR = alphas_cumprod(beta_schedule("linear", 0.0001, 0.02, 1000))
LOG_SNR_ABAR = torch.linspace(3, -4, 1025, dtype=torch.float64).mul(2).sigmoid()  # lambda in equal steps


def no_noise(x):
    raise AssertionError("a deterministic step asked for noise")


def golden_eps(x, t):
    """The predictor behind samplers.safetensors, recovered from its x and x0."""
    t = t.to(x.dtype).view(-1, 1, 1, 1)
    return 0.6 * torch.cos(t / 700) * x + 0.3 * torch.sin(3 * x) + 0.05 * t / 1000


class Gaussian:
    """Data N(mu, s^2), any dimension: the noise predictor and the probability-flow ODE in closed form."""

    def __init__(self, mu, s, abar):
        self.mu, self.s, self.abar = mu, s, abar

    def moments(self, abar):
        """Mean and standard deviation of x_t where the signal power is abar."""
        return abar**0.5 * self.mu, (abar * self.s**2 + 1 - abar) ** 0.5

    def __call__(self, x, t):
        """E[eps | x_t]; all of the batch has the same t."""
        abar = self.abar[t[0]].item()
        mean, std = self.moments(abar)
        return (1 - abar) ** 0.5 / std**2 * (x - mean)

    def flow(self, x, abar_from, abar_to):
        """The ODE keeps the number of standard deviations from the mean."""
        (m, v), (mean, std) = self.moments(abar_from), self.moments(abar_to)
        return mean + std * (x - m) / v


# --- timesteps


@pytest.mark.parametrize(("skip_type", "steps"), [("uniform", 10), ("uniform", 50), ("quad", 20), ("quad", 100)])
def test_timestep_sequence_is_the_golden_one(skip_type, steps):
    assert timestep_sequence(1000, steps, skip_type) == SAMPLERS[f"ddim.{skip_type}{steps}.seq"].tolist()


@given(st.integers(1, 1000), st.data(), st.sampled_from(["uniform", "quad"]))
def test_timestep_sequence_ascends_within_the_schedule(num_timesteps, data, skip_type):
    steps = data.draw(st.integers(1, num_timesteps))
    seq = timestep_sequence(num_timesteps, steps, skip_type)
    assert seq == sorted(seq) and seq[0] == 0 and seq[-1] < num_timesteps
    assert len(seq) >= steps


@pytest.mark.parametrize("bad", [(1000, 0, "uniform"), (1000, 1001, "quad"), (1000, 10, "cosine")])
def test_timestep_sequence_refuses(bad):
    with pytest.raises(ValueError, match=r"steps=|skip_type"):
        timestep_sequence(*bad)


# --- DDIM


@pytest.mark.parametrize("name", ["uniform10", "uniform50", "quad20", "quad100"])
def test_ddim_is_the_golden_one(name):
    abar = alphas_cumprod(SAMPLERS["ddim.betas"])
    seq = SAMPLERS[f"ddim.{name}.seq"].tolist()
    steps = list(generalized(golden_eps, SAMPLERS["x_T"], seq, abar, eta=0, noise=no_noise))
    middle = steps[len(steps) // 2]
    for ours, key in [(middle.x_t, "x_mid"), (middle.x0, "x0_mid"), (steps[-1].x_prev, "sample")]:
        golden = SAMPLERS[f"ddim.{name}.{key}"]
        assert torch.dist(ours, golden) < 2e-6 * golden.norm()


@pytest.mark.parametrize("case", ["beds.ddim50", "sd.ddim10"])
def test_sigma_is_the_golden_one_of_latent_diffusion(case):
    abar, prev, sigmas = (SAMPLERS[f"ldm.{case}.{key}"].double() for key in ("alphas", "alphas_prev", "sigmas_eta1"))
    ours = [ddim_coefficients(a, p, 1.0)[0] for a, p in zip(abar.tolist(), prev.tolist())]
    torch.testing.assert_close(torch.tensor(ours, dtype=torch.float64), sigmas, rtol=1e-4, atol=1e-6)


@given(st.floats(1e-5, 0.9999), st.floats(0, 1), st.floats(0, 1))
def test_ddim_keeps_the_marginals_for_every_eta(abar_t, part, eta):
    # Song et al. 2021, lemma 1: with x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps the noise that is left in x_prev
    # has variance 1 - abar_prev
    abar_prev = abar_t + part * (1 - abar_t)
    sigma, direction = ddim_coefficients(abar_t, abar_prev, eta)
    assert sigma >= 0
    assert sigma**2 + direction**2 == pytest.approx(1 - abar_prev, rel=1e-9, abs=1e-12)


def test_ddim_of_a_single_image_finds_it_in_one_step():
    model = Gaussian(0.3, 0.0, ABAR)
    x_T = torch.tensor([[-1.0], [2.0]], dtype=torch.float64)
    for step in generalized(model, x_T, [0, 400, 800], ABAR, eta=0.5, noise=torch.ones_like):
        torch.testing.assert_close(step.x0, torch.full_like(x_T, 0.3))
    torch.testing.assert_close(step.x_prev, torch.full_like(x_T, 0.3))


def test_ddim_converges_to_the_flow_at_first_order():
    abar = LOG_SNR_ABAR
    model = Gaussian(0.4, 0.6, abar)
    x_T = torch.tensor([[-1.3], [0.2], [1.7]], dtype=torch.float64)
    exact = model.flow(x_T, abar[-1].item(), abar[0].item())

    def error(n):
        *_, last = generalized(model, x_T, range(0, 1025, 1024 // n), abar, eta=0, noise=no_noise)
        assert last.t == 0
        return (last.x_t - exact).abs().max().item()

    assert math.log2(error(128) / error(256)) == pytest.approx(1, abs=0.05)


# --- noise


def propagate(sampler, model, timesteps, **options):
    """Mean and variance for x_T ~ N(0, 1) at the first timestep, in front of the last step.

    Every step of a Gaussian model is affine, x_prev = a x + b + sigma z. Three trajectories give a, b and sigma of
    each step: two without noise and one with a z throughout that is too small for any clipping.
    """
    x_T = torch.tensor([[-0.5], [0.5], [0.5]], dtype=torch.float64)
    mean, var = 0.0, 1.0
    z = torch.tensor([[0.0], [0.0], [1e-3]], dtype=torch.float64)
    for step in sampler(model, x_T, timesteps, model.abar, noise=lambda x: z, **options):
        (x0, x1, x2), (y0, y1, y2) = step.x_t.flatten().tolist(), step.x_prev.flatten().tolist()
        a = (y1 - y0) / (x1 - x0)
        b = y0 - a * x0
        before = mean, var
        mean, var = a * mean + b, a**2 * var + ((y2 - a * x2 - b) / 1e-3) ** 2
    return before


@pytest.mark.parametrize(("sampler", "options"), [(generalized, {"eta": 1.0}), (ddpm_noisy, {})])
def test_stochastic_samplers_converge_to_the_data_distribution(sampler, options):
    model = Gaussian(0.2, 0.1, LOG_SNR_ABAR)
    mean, std = model.moments(model.abar[0].item())

    def errors(n):
        m, v = propagate(sampler, model, range(0, 1025, 1024 // n), **options)
        return abs(m / mean - 1), abs(v / std**2 - 1)

    (mean_error, coarse), (_, fine) = errors(1024), errors(512)
    assert mean_error < 0.002 and coarse < 0.02, (mean_error, coarse)
    assert fine / coarse == pytest.approx(2, abs=0.3)


def test_ddpm_adds_beta_and_ddim_the_posterior_variance():
    x_T = torch.zeros(1, 1, dtype=torch.float64)
    model = Gaussian(0.0, 0.5, ABAR)
    abar_t, abar_prev = ABAR[800].item(), ABAR[600].item()
    beta = 1 - abar_t / abar_prev

    def variance(sampler, **options):
        loud, quiet = (
            next(sampler(model, x_T, [600, 800], ABAR, noise=z, **options)).x_prev
            for z in (torch.ones_like, torch.zeros_like)
        )
        return (loud - quiet).item() ** 2

    assert variance(ddpm_noisy) == pytest.approx(beta)  # Ho et al. 2020, section 3.2: the larger choice
    assert variance(generalized, eta=1.0) == pytest.approx((1 - abar_prev) / (1 - abar_t) * beta)  # equation 7
    assert variance(generalized, eta=0.5) == pytest.approx((1 - abar_prev) / (1 - abar_t) * beta / 4)


def test_ddpm_mean_is_the_posterior_mean_of_the_clipped_image():
    x = torch.tensor([[0.5], [30.0], [-30.0]], dtype=torch.float64)
    abar_t, abar_prev = ABAR[500].item(), ABAR[400].item()
    step = next(ddpm_noisy(lambda x, t: 0 * x, x, [400, 500], ABAR, noise=torch.zeros_like))
    x0 = torch.tensor([[0.5 / abar_t**0.5], [1.0], [-1.0]], dtype=torch.float64).clamp(-1, 1)
    torch.testing.assert_close(step.x0, x0)
    # q(x_prev | x_t, x0) by Bayes' rule: precision-weighted mean of the prior from x0 and the likelihood of x_t
    ratio = abar_t / abar_prev
    prior, likelihood = 1 / (1 - abar_prev), ratio / (1 - ratio)
    mean = (prior * abar_prev**0.5 * x0 + likelihood * x / ratio**0.5) / (prior + likelihood)
    torch.testing.assert_close(step.x_prev, mean)


@pytest.mark.parametrize("sampler", [lambda *a, noise: generalized(*a, eta=1.0, noise=noise), ddpm_noisy])
def test_last_step_and_repeated_timesteps_add_no_noise(sampler):
    seq = [0, 0, 0, 3, 9]
    asked = []

    def noise(x):
        asked.append(x.shape)
        return torch.zeros_like(x)

    steps = list(sampler(Gaussian(0.2, 0.1, ABAR), torch.zeros(4, 2, dtype=torch.float64), seq, ABAR, noise=noise))
    assert [s.t for s in steps] == [9, 3, 0, 0, 0]
    assert asked == [(4, 2)] * 2  # 9 -> 3 and 3 -> 0
    torch.testing.assert_close(steps[-1].x_prev, steps[-1].x0)


# --- corrections and ends


STOCHASTIC = pytest.mark.parametrize(
    "sampler",
    [lambda *a, **options: generalized(*a, eta=1.0, **options), ddpm_noisy],
    ids=["generalized", "ddpm_noisy"],
)


@STOCHASTIC
@pytest.mark.parametrize(("s", "left"), [(0.05, True), (0.2, True), (5.0, False)])
def test_error_of_the_predictions_takes_the_place_of_noise(sampler, s, left):
    x_T, model = torch.full((2, 1), 0.7, dtype=torch.float64), Gaussian(0.2, 0.5, ABAR)
    error = torch.tensor([[0.0], [1e-4]], dtype=torch.float64)  # too small for any clipping

    def step(z, s):
        def correct(index, t, eps):
            assert (index, t) == (0, 800)
            return eps + error, s

        return next(sampler(model, x_T, [600, 800], ABAR, noise=lambda x: z + 0 * x, correct=correct))

    quiet, loud, plain = step(0.0, s), step(1.0, s), step(1.0, 0.0)
    torch.testing.assert_close(quiet.eps, model(x_T, torch.tensor([800, 800])) + error)
    sigma, c = (plain.x_prev - quiet.x_prev)[0].item(), quiet.x_prev.diff(dim=0).item() / 1e-4  # c: of an error in eps
    rest = (loud.x_prev - quiet.x_prev)[0].item()
    if left:
        assert (c * s) ** 2 + rest**2 == pytest.approx(sigma**2)  # PTQD: the variance stays that of the sampler
    else:
        assert rest == 0 < sigma < abs(c * s)


def test_no_error_reaches_a_clipped_image_and_its_noise_stays():
    x_T, beta_t = torch.tensor([[0.01], [30.0], [-30.0]], dtype=torch.float64), 1 - (ABAR[800] / ABAR[600]).item()

    def step(z, error):
        return next(
            ddpm_noisy(
                lambda x, t: 0 * x,
                x_T,
                [600, 800],
                ABAR,
                noise=lambda x: z + 0 * x,
                correct=lambda index, t, eps: (eps + error, 0.2),
            )
        ).x_prev

    moved = (step(0.0, 0.01) - step(0.0, 0.0)).abs() > 0
    assert moved.flatten().tolist() == [True, False, False]
    added = (step(1.0, 0.0) - step(0.0, 0.0)).flatten()
    assert added[0] ** 2 < 0.99 * beta_t
    torch.testing.assert_close(added[1:] ** 2, torch.full((2,), beta_t, dtype=torch.float64))


@STOCHASTIC
def test_gaussian_errors_of_the_network_leave_the_distribution_as_it_is(sampler):
    """Mean and variance after three steps of a network with unit errors, followed exactly through the affine steps."""
    model = Gaussian(0.2, 0.1, LOG_SNR_ABAR)
    s, timesteps = 0.05, [256, 512, 768, 1024]

    def moments(s):
        mean, var = 0.0, 1.0
        rows = torch.tensor([0.0, 1e-3, 0.0, 0.0], dtype=torch.float64)  # of x, eps and noise: too small for clipping
        dx_T, e, z = (rows.roll(i).view(4, 1) for i in range(3))
        options = {"noise": lambda x: z, "correct": lambda index, t, eps: (eps + e, s)}
        for step in sampler(model, dx_T - 0.5, timesteps, model.abar, **options):
            base, dx, de, dz = step.x_prev.flatten().tolist()
            x = step.x_t.flatten().tolist()
            a = (dx - base) / (x[1] - x[0])
            b = base - a * x[0]
            c, sigma = ((y - a * x_i - b) / 1e-3 for y, x_i in ((de, x[2]), (dz, x[3])))
            mean, var = a * mean + b, a**2 * var + (c * s) ** 2 + sigma**2
            if step.index == 2:
                return mean, var

    assert moments(s) == pytest.approx(moments(0.0))


@STOCHASTIC
def test_corrected_and_plain_runs_draw_the_same_noise(sampler):
    asked = []

    def noise(x):
        asked.append(x.shape)
        return torch.zeros_like(x)

    x_T = torch.zeros(1, 2, dtype=torch.float64)
    options = {"noise": noise, "correct": lambda index, t, eps: (eps, 1e3)}
    final(sampler(Gaussian(0.2, 0.1, ABAR), x_T, [0, 3, 9], ABAR, **options))
    assert len(asked) == 2


def test_walk_ends_where_it_is_told():
    abar = ABAR.tolist()
    assert walk([1, 500], ABAR) == [(500, abar[500], abar[1]), (1, abar[1], 1.0)]
    assert walk([1, 500], ABAR, abar[0]) == [(500, abar[500], abar[1]), (1, abar[1], abar[0])]
    model, x_T = Gaussian(0.2, 0.1, ABAR), torch.ones(1, 2, dtype=torch.float64)
    steps = generalized(model, x_T, [1, 500], ABAR, eta=0, noise=no_noise, abar_end=abar[0])
    *_, last = steps
    # DDIM with eta 0 keeps x0 and eps
    torch.testing.assert_close(last.x_prev, abar[0] ** 0.5 * last.x0 + (1 - abar[0]) ** 0.5 * last.eps)


@pytest.mark.parametrize("abar_end", [1.01, ABAR[400].item(), 0.0])
def test_walk_ends_between_the_first_timestep_and_the_image(abar_end):
    with pytest.raises(ValueError, match="abar_end="):
        walk([399, 800], ABAR, abar_end)


# --- the interface


def test_steps_chain_and_can_be_stopped():
    calls = []

    def model(x, t):
        calls.append(t)
        return golden_eps(x, t)

    x_T = SAMPLERS["x_T"]
    walk = generalized(model, x_T, [0, 300, 600, 900], ABAR, eta=0, noise=no_noise)
    first, second = next(walk), next(walk)
    assert torch.equal(first.x_t, x_T) and second.x_t is first.x_prev
    assert [(s.index, s.t) for s in (first, second)] == [(0, 900), (1, 600)]
    assert [t.tolist() for t in calls] == [[900, 900], [600, 600]]
    assert torch.equal(second.eps, golden_eps(second.x_t, calls[1]))
    assert first.x_prev.dtype == torch.float32


def test_final_is_the_last_image_and_carries_no_gradient():
    weight = torch.ones((), requires_grad=True)

    def run():
        return generalized(
            lambda x, t: weight * golden_eps(x, t), SAMPLERS["x_T"], [0, 500], ABAR, eta=0, noise=no_noise
        )

    image = final(run())
    assert torch.equal(image, list(run())[-1].x_prev)
    assert not image.requires_grad and torch.is_grad_enabled()


@pytest.mark.parametrize("timesteps", [[], [-1, 5], [5, 1000], [5, 3]])
def test_samplers_refuse_timesteps_outside_the_schedule(timesteps):
    with pytest.raises(ValueError, match="timesteps must ascend"):
        final(ddpm_noisy(golden_eps, SAMPLERS["x_T"], timesteps, ABAR, noise=no_noise))


def test_samplers_refuse_impossible_numbers():
    with pytest.raises(ValueError, match=r"eta=1\.5"):
        final(generalized(golden_eps, SAMPLERS["x_T"], [0], ABAR, eta=1.5, noise=no_noise))
    jsd = alphas_cumprod(beta_schedule("jsd", 0.1, 0.1, 10))  # nothing of the image is left at its end
    with pytest.raises(ValueError, match="alphas_cumprod"):
        final(generalized(golden_eps, SAMPLERS["x_T"], range(10), jsd, eta=0, noise=no_noise))


@pytest.mark.parametrize("t", [250, 312.5])
def test_another_model_is_asked_at_the_same_x_and_t(t):
    x = torch.arange(6.0).view(3, 2)
    step = Step(0, t, x, x, x, x)
    seen = []
    assert torch.equal(step.predicted_by(lambda *asked: seen.append(asked) or asked[0] + 1), x + 1)
    ((x_t, times),) = seen
    assert x_t is x and times.tolist() == [t] * 3
