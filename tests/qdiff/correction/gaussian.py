"""Gaussian data, whose noise predictor is known, and a network with planted errors."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusion.schedules import alphas_cumprod, beta_schedule
from qdiff.correction.moments import Moments
from qdiff.correction.steps import StepFactors

ABAR = alphas_cumprod(beta_schedule("linear", 0.1, 0.5, 12))  # at all of whose timesteps eps has a variance
MU, S = 0.4, 0.5  # mean and standard deviation of the data
SHAPE = (2, 8, 8)


def noise(generator: torch.Generator):
    return lambda x: torch.randn(x.shape, generator=generator, dtype=torch.float64)


def predict(x: Tensor, t: Tensor) -> Tensor:
    """E[eps | x_t], the same t for all."""
    slope, shift = line(int(t[0]))
    return slope * x + shift


def line(t: int) -> tuple[float, float]:
    """The predictor is slope x + shift."""
    abar = ABAR[t].item()
    slope = (1 - abar) ** 0.5 / (abar * S**2 + 1 - abar)
    return slope, -slope * abar**0.5 * MU


def final_moments(factors: StepFactors, timesteps: list[int]) -> tuple[float, float]:
    """Mean and variance of what a sampler makes of x_T ~ N(0, 1) with the exact predictor."""
    mean, variance = 0.0, 1.0
    for a, c, sigma, t in zip(factors.a.tolist(), factors.c.tolist(), factors.sigma.tolist(), timesteps):
        slope, shift = line(t)
        mean = (a + c * slope) * mean + c * shift
        variance = (a + c * slope) ** 2 * variance + sigma**2
    return mean, variance


@dataclass
class Planted:
    """A network that predicts (1 + k) eps + bias + std z, with a bias for each channel."""

    k: float = 0.0
    bias: tuple[float, float] = (0.0, 0.0)
    std: float = 0.0
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(5))

    def error(self, eps: Tensor) -> Tensor:
        z = torch.randn(eps.shape, generator=self.generator, dtype=torch.float64)
        return (1 + self.k) * eps + torch.tensor(self.bias, dtype=torch.float64).view(-1, 1, 1) + self.std * z

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.error(predict(x, t))


def collected(sampler, quantized, samples: int, seed: int) -> Moments:
    """Moments (B, S, C, 8) along the trajectories of the exact predictor."""
    generator = torch.Generator().manual_seed(seed)
    x_T = torch.randn(samples, *SHAPE, generator=generator, dtype=torch.float64)
    each = [
        Moments.of(step.eps, quantized(step.x_t, torch.full((samples,), step.t)))
        for step in sampler.steps(predict, x_T, ABAR, noise(generator))
    ]
    return each[0].like(torch.stack([m.values for m in each], 1))
