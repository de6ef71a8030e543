"""Settings of the latent samplers; what all samplers have in common is in tests/qdiff/adapters/test_samplers.py."""

import pytest
import torch

from diffusion.dpm_solver import dpm_solver
from diffusion.samplers import generalized
from diffusion.schedules import alphas_cumprod, beta_schedule
from ldm.samplers import ddim, latent_timesteps, plms
from qdiff.adapters.ldm.samplers import DDIM, DDPM, PLMS, DPMSolver

ABAR = alphas_cumprod(beta_schedule("quad", 0.00085, 0.012, 100))
X_T = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))


def toy(x, t):
    return 0.3 * x.tanh() + 1e-2 * t.float()[:, None]


def noise():
    generator = torch.Generator().manual_seed(1)
    return lambda x: torch.randn(x.shape, generator=generator)


MEANT = [
    (DDIM(7, 0.3), lambda: ddim(toy, X_T, latent_timesteps(100, 7), ABAR, eta=0.3, noise=noise())),
    (PLMS(7), lambda: plms(toy, X_T, latent_timesteps(100, 7), ABAR)),
    (DPMSolver(7), lambda: dpm_solver(toy, X_T, ABAR, 7, order=2, method="multistep")),
    (DDPM(), lambda: generalized(toy, X_T, range(100), ABAR, eta=1.0, noise=noise())),
]


@pytest.mark.parametrize(("sampler", "meant"), MEANT)
def test_settings_mean_these_samplers(sampler, meant):
    found, wanted = list(sampler.steps(toy, X_T, ABAR, noise())), list(meant())
    assert sampler.nfe(100) == len(found) == len(wanted)
    assert all(torch.equal(a.x_prev, b.x_prev) for a, b in zip(found, wanted))


def test_samplers_as_text():
    samplers = DDIM(50, 0.0), PLMS(50), DPMSolver(20), DDPM()
    wanted = ["DDIM(steps=50, eta=0.0)", "PLMS(steps=50)", "DPMSolver(steps=20)", "DDPM()"]
    assert [str(s) for s in samplers] == wanted


@pytest.mark.parametrize(
    ("sampler", "num_timesteps", "said"),
    [
        (DDIM(1000, 0.0), 1000, "use 500$"),
        (PLMS(3), 1000, "use 2 or 4$"),
        (DPMSolver(5), 1, "at least two timesteps"),
    ],
)
def test_steps_that_the_schedule_does_not_have(sampler, num_timesteps, said):
    with pytest.raises(ValueError, match=said):
        sampler.nfe(num_timesteps)


@pytest.mark.parametrize("kind", [DDIM, PLMS, DPMSolver])
def test_settings_outside_their_range(kind):
    with pytest.raises(ValueError, match="steps must be at least 1, not 0"):
        kind(0)
    with pytest.raises(TypeError, match="steps must be a whole number, not '5'"):
        kind("5")


def test_noise_outside_its_range():
    with pytest.raises(ValueError, match=r"eta must be in 0\.\.1, not -0\.1"):
        DDIM(5, -0.1)
