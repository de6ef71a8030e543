from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from qdiff.training.denoiser import Denoiser, multiscale_loss, stratified_timesteps

OPTIM = SimpleNamespace(lr=1e-2, beta1=0.9, eps=1e-8, weight_decay=0.0)
ABAR = torch.linspace(0.99, 0.01, 10)


def test_one_timestep_of_every_part():
    torch.manual_seed(0)
    for _ in range(20):
        t = stratified_timesteps(8, 1000, "cpu")
        assert (t // 125).tolist() == list(range(8))
    drawn = torch.cat([stratified_timesteps(3, 10, "cpu") for _ in range(400)])
    assert set(drawn.tolist()) == set(range(10)), "every timestep is drawn, the ends too"


@pytest.mark.parametrize("base", [0, 0.5, 1, 2])
def test_multiscale_loss_against_numpy(base):
    error = np.random.default_rng(0).standard_normal((2, 3, 8, 8))
    expected, weights = 0.0, [base**k for k in range(4)]
    for k, weight in enumerate(weights):
        side = 2**k
        means = error.reshape(2, 3, 8 // side, side, 8 // side, side).mean((3, 5))
        expected = expected + weight / sum(weights) * (means**2).mean((1, 2, 3))
    found = multiscale_loss(torch.from_numpy(error), base)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
    if base == 0:
        np.testing.assert_allclose(found.numpy(), (error**2).mean((1, 2, 3)), rtol=1e-12)


class Recording(nn.Module):
    """Predicts zero noise, and remembers what it was given."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))

    def forward(self, x, t):
        self.x, self.t = x, t
        return 0 * self.w * x


def denoiser(limit: float) -> Denoiser:
    made = Denoiser(Recording(), ABAR, OPTIM, warmup=4, steps=10, weight_limit=limit, scale_base=0)
    made.log = lambda *args, **options: None
    return made


def test_noisy_images_and_their_weights():
    """With eps predicted as zero the loss is the weighted mean square of the noise that was added."""
    x0 = torch.full((4, 1, 2, 2), 3.0)
    for limit in (1.0, 5.0):
        module = denoiser(limit)
        torch.manual_seed(1)
        loss = module.training_step((x0,), 0)
        abar = ABAR[module.model.t][:, None, None, None]
        eps = (module.model.x - abar.sqrt() * x0) / (1 - abar).sqrt()
        weight = (1 / (abar / (1 - abar))).clamp(1, limit).flatten()
        all_weights = ((1 - ABAR) / ABAR).clamp(1, limit)
        expected = (weight / all_weights.mean() * eps.square().mean((1, 2, 3))).mean()
        torch.testing.assert_close(loss, expected)
        torch.manual_seed(1)
        torch.rand(4)
        torch.testing.assert_close(eps, torch.randn(4, 1, 2, 2), rtol=1e-4, atol=1e-4)


def test_learning_rate_rises_then_falls_as_a_cosine():
    configured = denoiser(1.0).configure_optimizers()
    adam, rate = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    found = []
    for _ in range(11):
        found.append(adam.param_groups[0]["lr"])
        adam.step()
        rate.step()
    cosine = [0.5 * (1 + np.cos(np.pi * i / 10)) for i in range(11)]
    warm = [0.25, 0.5, 0.75] + [1] * 8
    np.testing.assert_allclose(found, [1e-2 * w * c for w, c in zip(warm, cosine)], atol=1e-12)
