import pytest
import torch

from diffusion.samplers import ddim_coefficients, walk
from diffusion.schedules import alphas_cumprod, beta_schedule
from qdiff.adapters.ddim.samplers import DDIM, DDPM, DPMSolver
from qdiff.adapters.ldm import samplers as ldm
from qdiff.correction.steps import step_factors

ABAR = alphas_cumprod(beta_schedule("linear", 0.0001, 0.02, 1000))


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_factors_of_ddim(eta):
    sampler = DDIM(12, "quad", eta)
    found = step_factors(sampler, ABAR, clipped=True)
    for i, (_, abar, prev) in enumerate(walk(sampler._timesteps(1000), ABAR)):
        sigma, direction = ddim_coefficients(abar, prev, eta)
        assert found.a[i].item() == pytest.approx((prev / abar) ** 0.5, rel=1e-6)
        assert found.sigma[i].item() == pytest.approx(sigma, abs=1e-6)
        assert found.c[i].item() == pytest.approx(direction - (prev * (1 - abar) / abar) ** 0.5, abs=1e-6)


@pytest.mark.parametrize("sampler", [ldm.PLMS(10), ldm.DPMSolver(10), DPMSolver(9)])
def test_multistep_methods_have_none(sampler):
    assert step_factors(sampler, ABAR) is None


def test_a_sampler_that_clips_has_factors_where_it_does_not():
    assert step_factors(DDPM(10), ABAR, clipped=True) is None
    found = step_factors(DDPM(10), ABAR)
    (_, abar, prev), *_ = walk(DDPM(10)._timesteps(1000), ABAR)
    beta = 1 - abar / prev
    assert found.sigma[0].item() == pytest.approx(beta**0.5)
    assert found.c[0].item() == pytest.approx(-beta / ((1 - beta) * (1 - abar)) ** 0.5)
    assert found.sigma[-1] == 0


def test_a_first_order_solver_is_ddim():
    found = step_factors(DPMSolver(10, 1, "multistep"), ABAR, clipped=True)
    assert found is not None and not found.sigma.any()
    assert torch.all(found.c < 0)
