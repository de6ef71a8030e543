"""DDIM and PLMS as latent diffusion runs them (Rombach et al. 2022): generators that yield one `Step` per network call.

Timesteps are one later than those of pixel-space models, as in the authors' code, and the result has the signal power
abar_0 instead of being the clean image.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import count

import torch
from torch import Tensor

from diffusion.samplers import ddim_coefficients, generalized, implied_image, predict, timestep_sequence, walk
from diffusion.steps import Correction, Model, Noise, Step, uncorrected

# Weights of the slopes, the newest first, for orders 1 to 4
ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def latent_timesteps(num_timesteps: int, steps: int, skip_type: str = "uniform") -> list[int]:
    """Return `timestep_sequence` with each timestep one later: the last step ends at t = 0, not at the clean image.

    Args:
        num_timesteps, steps, skip_type: see `timestep_sequence`.

    Returns:
        ascending timesteps in 1..T-1.

    Raises:
        ValueError: `skip_type` is unknown, `steps` is outside its range, or the sequence exceeds T-1; then the message
            names the nearest numbers of steps for which it does not.
    """
    if _fit(num_timesteps, steps, skip_type):
        return [t + 1 for t in timestep_sequence(num_timesteps, steps, skip_type)]
    fewer = (n for n in range(min(steps, num_timesteps + 1) - 1, 0, -1) if _fit(num_timesteps, n, skip_type))
    more = (n for n in range(steps + 1, num_timesteps + 1) if _fit(num_timesteps, n, skip_type))
    nearest = [str(n) for n in (next(fewer, None), next(more, None)) if n]
    hint = f"use {' or '.join(nearest)}" if nearest else "no number of steps fits"
    raise ValueError(f"steps={steps} leads to timestep {num_timesteps}, but the last is {num_timesteps - 1}: {hint}")


def _fit(num_timesteps: int, steps: int, skip_type: str) -> bool:
    """Return whether the last of the `latent_timesteps` is in the schedule."""
    if steps > num_timesteps:
        return False
    return timestep_sequence(num_timesteps, steps, skip_type)[-1] + 1 < num_timesteps


def ddim(
    model: Model,
    x_T: Tensor,
    timesteps: Sequence[int],
    alphas_cumprod: Tensor,
    *,
    eta: float,
    noise: Noise,
    correct: Correction = uncorrected,
) -> Iterator[Step]:
    """Sample with `generalized`, ending at abar_0; with eta > 0 the last step adds noise too.

    Args:
        model, x_T, alphas_cumprod, eta, noise, correct: see `generalized`.
        timesteps: ascending, in 0..T-1, repetitions allowed; see `latent_timesteps`.

    Yields:
        one `Step` per timestep.

    Raises:
        ValueError: an argument is outside its range; at the first step.
    """
    abar_0 = alphas_cumprod[0].item()
    return generalized(model, x_T, timesteps, alphas_cumprod, eta=eta, noise=noise, abar_end=abar_0, correct=correct)


def _transfer(x_t: Tensor, eps: Tensor, abar_t: float, abar_prev: float) -> Tensor:
    """Return x_prev of a DDIM step with eta 0 (Liu et al. 2022, equation 11)."""
    _, direction = ddim_coefficients(abar_t, abar_prev, eta=0)
    return abar_prev**0.5 * implied_image(x_t, eps, abar_t) + direction * eps


@torch.no_grad()
def plms(
    model: Model,
    x_T: Tensor,
    timesteps: Sequence[int],
    alphas_cumprod: Tensor,
    *,
    correct: Correction = uncorrected,
) -> Iterator[Step]:
    """Sample with PLMS, pseudo linear multistep (Liu et al. 2022, arXiv 2202.09778, algorithm 2).

    Each step is a DDIM step along a weighted mean of the last predictions: up to four, with Adams-Bashforth weights.
    The first step is an improved Euler step: it averages the predictions at its start and at its end.

    Args:
        model: `model(x_t, t)` -> eps, where t has shape (B,) and is int64.
        x_T: Gaussian noise, shape (B, ...).
        timesteps: ascending, in 0..T-1; see `latent_timesteps`.
        alphas_cumprod: abar_t, shape (T,), in (0, 1) at the timesteps; the result has the noise of abar_0.
        correct: improves each prediction; the sampler is deterministic and ignores the error that remains.

    Yields:
        one `Step` per network call, one more than timesteps: the second call is at the end of the first step, so the
        second timestep is visited twice, and `x_prev` of that call is the result of the first step.

    Raises:
        ValueError: an argument is outside its range; at the first step.
    """
    steps = walk(timesteps, alphas_cumprod, alphas_cumprod[0].item())
    ends = [t for t, _, _ in steps[1:]] + [0]
    calls = count()

    def call(x_t: Tensor, t: int) -> tuple[int, Tensor]:
        i = next(calls)
        return i, correct(i, t, predict(model, x_t, t))[0]

    x = x_T
    recent: deque[Tensor] = deque(maxlen=len(ADAMS_BASHFORTH))  # newest first
    for (t, abar_t, abar_prev), t_prev in zip(steps, ends):
        i, eps = call(x, t)
        recent.appendleft(eps)
        weights = ADAMS_BASHFORTH[len(recent) - 1]
        slope = sum((weight * e for weight, e in zip(weights, recent)), torch.zeros_like(eps))
        x_prev = _transfer(x, slope, abar_t, abar_prev)
        yield Step(i, t, x, eps, implied_image(x, eps, abar_t), x_prev)
        if i == 0:
            guess = x_prev
            i, end = call(guess, t_prev)
            x_prev = _transfer(x, (eps + end) / 2, abar_t, abar_prev)
            yield Step(i, t_prev, guess, end, implied_image(guess, end, abar_prev), x_prev)
        x = x_prev
