"""The protocol `diffusion.steps.Sampler`, as every sampler of both packages keeps it."""

import pytest
import torch

from diffusion.steps import check_schedule
from qdiff.adapters.ddim import samplers as pixel
from qdiff.adapters.ldm import samplers as latent
from tests.diffusion.test_dpm_solver import Mixture
from tests.diffusion.test_samplers import LOG_SNR_ABAR

ABAR = LOG_SNR_ABAR[::16]  # T = 65
MODEL = Mixture(ABAR)
X_T = torch.tensor([[-1.3], [0.2], [1.7]], dtype=torch.float64)

SAMPLERS = [
    pixel.DDIM(6, "quad", 0.3),
    pixel.DDIM(6),
    pixel.DDPM(6, "uniform"),
    pixel.DPMSolver(7, skip_type="uniform"),
    pixel.DPMSolver(6, 2, "multistep", "quad"),
    latent.DDIM(5, 1.0),
    latent.DDIM(5),
    latent.PLMS(5),
    latent.DPMSolver(5),
    latent.DDPM(),
]
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: f"{s.__module__.split('.')[2]}.{s}")


def noise():
    generator = torch.Generator().manual_seed(0)
    return lambda x: torch.randn(x.shape, generator=generator).to(x)


def on_grid(x, t):
    """The exact noise predictor in multiples of 2^-20, to which a bias can be added and taken away without rounding."""
    return (MODEL(x, t) * 2**20).round() / 2**20


@every_sampler
def test_every_network_call_is_corrected_and_counted(sampler):
    times, corrected = [], []

    def model(x, t):
        assert t.shape == (3,) and len(times) == len(corrected)
        times.append(t.unique().item())
        return MODEL(x, t)

    def correct(index, t, eps):
        corrected.append((index, t))
        return eps, 0.1

    steps = list(sampler.steps(model, X_T, ABAR, noise(), correct=correct))
    assert corrected == [(i, pytest.approx(t)) for i, t in enumerate(times)]
    assert [(step.index, step.t) for step in steps] == corrected
    assert sampler.nfe(len(ABAR)) == len(times)


@every_sampler
def test_a_known_bias_is_taken_out_exactly(sampler):
    def biased(x, t):
        return on_grid(x, t) + 0.25

    def run(model, **options):
        return list(sampler.steps(model, X_T, ABAR, noise(), **options))

    right, wrong = run(on_grid), run(biased)
    mended = run(biased, correct=lambda index, t, eps: (eps - 0.25, 0.0))
    assert not torch.allclose(wrong[-1].x_prev, right[-1].x_prev, rtol=1e-3)
    for one, other in zip(mended, right, strict=True):
        assert torch.equal(one.eps, other.eps) and torch.equal(one.x_prev, other.x_prev)


@every_sampler
def test_as_much_noise_is_drawn_with_a_correction_as_without(sampler):
    def draws(s):
        drawn = []

        def counted(x):
            drawn.append(x.shape)
            return torch.zeros_like(x)

        list(sampler.steps(MODEL, X_T, ABAR, counted, correct=lambda index, t, eps: (eps, s)))
        return drawn

    assert draws(1e3) == draws(0.0)


@every_sampler
def test_an_impossible_schedule_is_refused(sampler):
    check_schedule(sampler, ABAR)
    with pytest.raises(ValueError, match="alphas_cumprod"):
        check_schedule(sampler, 0 * ABAR)
