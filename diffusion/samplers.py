"""Samplers over discrete timesteps, DDIM and DDPM: generators that yield one `Step` per network call.

A caller may collect the steps, display them or stop early; `final` runs a sampler to its end.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from diffusion.steps import Correction, Model, Noise, Step, uncorrected


def timestep_sequence(num_timesteps: int, steps: int, skip_type: str) -> list[int]:
    """Return the subsequence tau of the timesteps that DDIM visits, as in its authors' code (Song et al. 2021, D.2).

    Args:
        num_timesteps: T of the schedule.
        steps: wanted length, 1..T.
        skip_type: "uniform" takes every (T // steps)-th timestep from 0, which gives more than `steps` of them where
            `steps` does not divide T; "quad" takes squares up to 0.8 T, the first of which repeat if `steps` is large.

    Returns:
        ascending timesteps in 0..T-1, at least `steps` of them; a sampler visits the last one first.

    Raises:
        ValueError: `skip_type` is unknown or `steps` is outside its range.
    """
    if not 1 <= steps <= num_timesteps:
        raise ValueError(f"steps={steps} must be in 1..{num_timesteps}, the timesteps of the schedule")
    if skip_type == "uniform":
        return list(range(0, num_timesteps, num_timesteps // steps))
    if skip_type == "quad":
        return [int(root**2) for root in np.linspace(0, np.sqrt(0.8 * num_timesteps), steps)]
    raise ValueError(f"skip_type '{skip_type}' is unknown: use uniform or quad")


def ddim_coefficients(abar_t: float, abar_prev: float, eta: float) -> tuple[float, float]:
    """Return sigma_t and the factor sqrt(1 - abar_prev - sigma_t^2) of eps (Song et al. 2021, equations 16 and 12).

    Args:
        abar_t, abar_prev: signal power before and after the step, 0 < abar_t <= abar_prev <= 1, abar_t < 1.
        eta: 0 (deterministic) to 1 (the variance of DDPM's posterior).
    """
    variance = eta**2 * (1 - abar_prev) / (1 - abar_t) * (1 - abar_t / abar_prev)
    return variance**0.5, max(1 - abar_prev - variance, 0.0) ** 0.5


def walk(timesteps: Sequence[int], alphas_cumprod: Tensor, abar_end: float = 1.0) -> list[tuple[int, float, float]]:
    """Return the steps (t, abar_t, abar_prev) from the last timestep to the first.

    Args:
        timesteps: ascending, in 0..T-1, repetitions allowed.
        alphas_cumprod: abar_t, shape (T,), in (0, 1) at `timesteps`.
        abar_end: abar_prev of the last step, from abar at the first timestep to 1, the clean image.

    Raises:
        ValueError: an argument is outside its range.
    """
    if (
        not timesteps
        or timesteps[0] < 0
        or timesteps[-1] >= len(alphas_cumprod)
        or list(timesteps) != sorted(timesteps)
    ):
        raise ValueError(f"timesteps must ascend within 0..{len(alphas_cumprod) - 1}")
    abar = alphas_cumprod.detach().cpu().double()[list(timesteps)].tolist()
    if not all(0 < a < 1 for a in abar):
        raise ValueError("alphas_cumprod must lie strictly within (0, 1) at every timestep visited")
    if not abar[0] <= abar_end <= 1:
        raise ValueError(f"abar_end={abar_end} must be in {abar[0]}..1, from the first timestep to the clean image")
    return list(zip(timesteps, abar, [abar_end, *abar]))[::-1]


def predict(model: Model, x_t: Tensor, t: int) -> Tensor:
    """Return eps of a batch x_t, (B, ...), all at the same timestep; the model gets it as int64 of shape (B,)."""
    return model(x_t, torch.full((len(x_t),), t, device=x_t.device))


def implied_image(x_t: Tensor, eps: Tensor, abar_t: float) -> Tensor:
    """Return x0 = (x_t - sqrt(1 - abar_t) eps) / sqrt(abar_t), the shape of x_t (Song et al. 2021, equation 9)."""
    return (x_t - (1 - abar_t) ** 0.5 * eps) / abar_t**0.5


def _remaining(variance: float, error: float) -> float:
    """Return the standard deviation of the noise to add to an x_prev that has the Gaussian error `error` already."""
    return max(variance - error**2, 0.0) ** 0.5


@torch.no_grad()
def generalized(
    model: Model,
    x_T: Tensor,
    timesteps: Sequence[int],
    alphas_cumprod: Tensor,
    *,
    eta: float,
    noise: Noise,
    abar_end: float = 1.0,
    correct: Correction = uncorrected,
) -> Iterator[Step]:
    """Sample with DDIM: x_prev = sqrt(abar_prev) x0 + sqrt(1 - abar_prev - sigma^2) eps + sigma z.

    Song et al. 2021, equation 12.

    Args:
        model: `model(x_t, t)` -> eps, where t has shape (B,) and is int64.
        x_T: Gaussian noise, shape (B, ...).
        timesteps: ascending, in 0..T-1, repetitions allowed; see `timestep_sequence`.
        alphas_cumprod: abar_t, shape (T,), in (0, 1) at `timesteps`.
        eta: 0 (deterministic) to 1.
        noise: `noise(x)` -> standard Gaussian z like x; called once for each step with sigma > 0, even if a correction
            leaves no noise to add, so that runs with and without a correction draw the same z.
        abar_end: signal power of the result, from that of the first timestep to 1, the clean image.
        correct: improves each prediction. The error s that remains reaches x_prev as c s, where c is the factor of eps
            in x_prev, so the noise gets the variance max(sigma^2 - c^2 s^2, 0).

    Yields:
        one `Step` per timestep; `x_prev` of the last one is the result.

    Raises:
        ValueError: an argument is outside its range; at the first step.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta} must be in 0..1")
    x = x_T
    for i, (t, abar_t, abar_prev) in enumerate(walk(timesteps, alphas_cumprod, abar_end)):
        eps, s = correct(i, t, predict(model, x, t))
        x0 = implied_image(x, eps, abar_t)
        sigma, direction = ddim_coefficients(abar_t, abar_prev, eta)
        x_prev = abar_prev**0.5 * x0 + direction * eps
        if sigma > 0:
            c = direction - (abar_prev * (1 - abar_t) / abar_t) ** 0.5
            x_prev = x_prev + _remaining(sigma**2, c * s) * noise(x)
        yield Step(i, t, x, eps, x0, x_prev)
        x = x_prev


@torch.no_grad()
def ddpm_noisy(
    model: Model,
    x_T: Tensor,
    timesteps: Sequence[int],
    alphas_cumprod: Tensor,
    *,
    noise: Noise,
    correct: Correction = uncorrected,
) -> Iterator[Step]:
    """Sample with DDPM (Ho et al. 2020, equations 6, 7), with x0 clipped to [-1, 1] and noise of variance beta_t.

    Between the timesteps visited, beta_t = 1 - abar_t / abar_prev. The last step adds no noise.

    Args:
        model, x_T, timesteps, alphas_cumprod, noise: see `generalized`.
        correct: improves each prediction. The error s that remains reaches x_prev as c s, where
            c = -beta_t / sqrt((1 - beta_t) (1 - abar_t)) is the factor of eps in x_prev (Ho et al. 2020, equation 11),
            so the noise gets the variance max(beta_t - c^2 s^2, 0). Elements whose x0 is clipped do not depend on eps:
            no error reaches them, and their noise keeps the variance beta_t.

    Yields:
        one `Step` per timestep; `x0` is clipped, `x_prev` of the last one is the clean image.

    Raises:
        ValueError: an argument is outside its range; at the first step.
    """
    x = x_T
    for i, (t, abar_t, abar_prev) in enumerate(walk(timesteps, alphas_cumprod)):
        eps, s = correct(i, t, predict(model, x, t))
        unclipped = implied_image(x, eps, abar_t)
        x0 = unclipped.clamp(-1, 1)
        beta_t = 1 - abar_t / abar_prev
        x_prev = (abar_prev**0.5 * beta_t * x0 + (1 - beta_t) ** 0.5 * (1 - abar_prev) * x) / (1 - abar_t)
        if abar_prev < 1 and beta_t > 0:
            c = -beta_t / ((1 - beta_t) * (1 - abar_t)) ** 0.5
            z = noise(x)
            x_prev = x_prev + torch.where(x0 == unclipped, _remaining(beta_t, c * s) * z, beta_t**0.5 * z)
        yield Step(i, t, x, eps, x0, x_prev)
        x = x_prev


def final(steps: Iterable[Step]) -> Tensor:
    """Run a sampler to its end and return `x_prev` of its last step, shape (B, ...); there is at least one step."""
    return deque(steps, maxlen=1)[0].x_prev
