"""Schedules, timestep embedding and normalization against closed forms."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ldm.modules.diffusionmodules.util import (
    GroupNorm32,
    diffusion_coefficients,
    make_beta_schedule,
    normalization,
    timestep_embedding,
    zero_module,
)
from tests.ldm.drawn import draw


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("linear", np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2),
        ("sqrt_linear", np.linspace(0.0015, 0.0195, 1000)),
        ("sqrt", np.linspace(0.0015, 0.0195, 1000) ** 0.5),
    ],
)
def test_schedules_between_two_ends(name, expected):
    np.testing.assert_allclose(make_beta_schedule(name, 1000, 0.0015, 0.0195), expected, rtol=1e-12)


def test_cosine_schedule_leaves_the_signal_of_its_definition():
    # Nichol and Dhariwal 2021, equation 17: abar_t = f(t) / f(0); betas are clipped at the very end only
    betas = make_beta_schedule("cosine", 100, cosine_s=0.008)
    t = np.arange(1, 100) / 100
    f = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose((1 - betas).cumprod(0)[:-1], f, rtol=1e-9)
    assert betas[-1] == 0.999


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (("quad", 10), "'quad'"),
        (("linear", 0), "timesteps=0"),
        (("linear", 10, 0.0), "linear_start=0.0"),
        (("linear", 10, 0.1, 1.0), "linear_end=1.0"),
    ],
)
def test_impossible_schedules_are_refused(args, named):
    with pytest.raises(ValueError, match=named):
        make_beta_schedule(*args)


def test_coefficients_are_those_of_the_gaussian_posterior():
    # q(x_{t-1} | x_t, x_0) by Bayes' rule from q(x_t | x_{t-1}) and q(x_{t-1} | x_0), both one-dimensional Gaussians
    betas = np.linspace(0.01, 0.3, 20)
    abar = np.cumprod(1 - betas)
    c = {name: x.numpy() for name, x in diffusion_coefficients(torch.tensor(betas)).items()}
    likelihood, prior = (1 - betas[1:]) / betas[1:], 1 / (1 - abar[:-1])  # precisions of x_{t-1}
    variance = 1 / (likelihood + prior)
    np.testing.assert_allclose(c["posterior_variance"][1:], variance, rtol=1e-5)
    np.testing.assert_allclose(c["posterior_mean_coef1"][1:], variance * prior * np.sqrt(abar[:-1]), rtol=1e-5)
    np.testing.assert_allclose(c["posterior_mean_coef2"][1:], variance * np.sqrt(1 - betas[1:]) / betas[1:], rtol=1e-5)
    np.testing.assert_allclose(c["posterior_log_variance_clipped"][1:], np.log(variance), rtol=1e-5)
    assert c["posterior_variance"][0] == 0
    assert c["posterior_log_variance_clipped"][0] == pytest.approx(np.log(1e-20))
    # x_0 = sqrt(1 / abar) x_t - sqrt(1 / abar - 1) eps inverts x_t = sqrt(abar) x_0 + sqrt(1 - abar) eps
    x_t = c["sqrt_alphas_cumprod"] * 2 + c["sqrt_one_minus_alphas_cumprod"] * 3
    x_0 = c["sqrt_recip_alphas_cumprod"] * x_t - c["sqrt_recipm1_alphas_cumprod"] * 3
    np.testing.assert_allclose(x_0, 2, rtol=1e-4)
    np.testing.assert_allclose(c["alphas_cumprod_prev"], [1, *abar[:-1]], rtol=1e-6)
    np.testing.assert_allclose(c["log_one_minus_alphas_cumprod"], np.log(1 - abar), rtol=1e-5)


def test_posterior_variance_between_its_bounds():
    betas = torch.linspace(0.01, 0.3, 20)
    torch.testing.assert_close(diffusion_coefficients(betas, v_posterior=1.0)["posterior_variance"], betas)


@pytest.mark.parametrize("dim", [8, 9])
def test_timestep_embedding(dim):
    t = np.array([0, 1, 250, 999])
    angle = t[:, None] * 10000.0 ** -(np.arange(dim // 2) / (dim // 2))
    expected = np.concatenate([np.cos(angle), np.sin(angle), np.zeros((4, dim % 2))], axis=1)
    np.testing.assert_allclose(timestep_embedding(torch.tensor(t), dim), expected, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_group_norm_computes_in_float32(dtype):
    norm = GroupNorm32(32, 64)
    norm.weight.copy_(draw(64))
    x = draw(2, 64, 5, seed=1).to(dtype)
    expected = F.group_norm(x.float(), 32, norm.weight).to(dtype)
    assert torch.equal(norm(x), expected)
    assert norm(x).dtype == dtype
    assert torch.equal(norm.bfloat16()(x), F.group_norm(x.float(), 32, norm.weight.float()).to(dtype))


def test_group_norm_needs_its_groups():
    with pytest.raises(ValueError, match="divisible"):
        normalization(48)


def test_zero_module_is_the_same_module_without_effect():
    layer = nn.Conv2d(2, 3, 3)
    assert zero_module(layer) is layer
    assert not layer(torch.ones(1, 2, 3, 3)).any()
