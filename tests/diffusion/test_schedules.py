"""Noise schedules against golden numbers and the formulas of their papers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from diffusion.schedules import SCHEDULES, alphas_cumprod, beta_schedule
from tests.golden_networks import GOLDEN

SAMPLERS = load_file(GOLDEN / "samplers.safetensors")
unit = st.floats(1e-6, 0.999)


def test_linear_is_the_golden_one():
    betas = beta_schedule("linear", 0.0001, 0.02, 1000)
    assert betas.dtype == torch.float64
    assert torch.equal(betas.float(), SAMPLERS["ddim.betas"])


@pytest.mark.parametrize("name", ["beds", "sd"])
def test_quad_is_the_golden_one_of_latent_diffusion(name):
    # latent diffusion calls it linear: a straight line of sqrt(beta)
    golden = SAMPLERS[f"ldm.{name}.betas"]
    betas = beta_schedule("quad", golden[0].item(), golden[-1].item(), 1000)
    torch.testing.assert_close(betas, golden, rtol=1e-12, atol=0)


def test_const_jsd_sigmoid():
    np.testing.assert_allclose(beta_schedule("const", 0.1, 0.3, 4), [0.3] * 4)
    np.testing.assert_allclose(beta_schedule("jsd", 0.1, 0.3, 4), [1 / 4, 1 / 3, 1 / 2, 1])
    # 1 / (1 + e^x) at x = 6, 2, -2, -6, stretched from (0, 1) to (0.1, 0.3)
    sigmoid = 1 / (1 + np.exp([6, 2, -2, -6]))
    np.testing.assert_allclose(beta_schedule("sigmoid", 0.1, 0.3, 4), 0.1 + 0.2 * sigmoid)


@given(st.sampled_from(sorted(SCHEDULES)), unit, unit, st.integers(1, 50))
def test_every_schedule_has_its_length_and_range(name, start, end, n):
    betas = beta_schedule(name, start, end, n)
    assert betas.shape == (n,)
    assert (betas > 0).all() and (betas <= 1).all()


def test_jsd_spends_the_signal_evenly():
    # Sohl-Dickstein et al. 2015: beta_t = 1 / (T - t + 1) takes the same part of the signal away at each step
    power = alphas_cumprod(beta_schedule("jsd", 0.1, 0.1, 10))
    np.testing.assert_allclose(power, np.arange(9, -1, -1) / 10, atol=1e-15)


@pytest.mark.parametrize("name", ["beds", "sd"])
def test_alphas_cumprod_is_the_golden_one_of_latent_diffusion(name):
    abar = alphas_cumprod(SAMPLERS[f"ldm.{name}.betas"])
    visited = abar[SAMPLERS[f"ldm.{name}.ddim50.timesteps"]]
    torch.testing.assert_close(visited.float(), SAMPLERS[f"ldm.{name}.ddim50.alphas"], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "bad", [("cosine", 0.1, 0.2, 5), ("linear", 0, 0.2, 5), ("linear", 0.1, 1, 5), ("linear", 0.1, 0.2, 0)]
)
def test_refuses_what_is_no_schedule(bad):
    with pytest.raises(ValueError, match=r"beta_schedule|must lie in"):
        beta_schedule(*bad)
