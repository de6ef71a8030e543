"""The protocol of samplers, and what they take and yield: a model, noise, a correction, and the steps."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Model = Callable[[Tensor, Tensor], Tensor]
"""`model(x_t, t)` -> eps with the shape of x_t, where t has shape (B,)."""

Noise = Callable[[Tensor], Tensor]
"""`noise(x)` -> standard Gaussian numbers like x."""

Correction = Callable[[int, float, Tensor], tuple[Tensor, float]]
"""`correct(index, t, eps)` -> (eps, s): a better prediction for the call `index` at timestep t, and the standard
deviation s >= 0 of the Gaussian error that is left in it.

A stochastic sampler lets that error take the place of as much of the noise that it would add (PTQD, He et al. 2023,
section 3.3); a deterministic one has nothing to give and uses eps alone.
"""


def uncorrected(index: int, t: float, eps: Tensor) -> tuple[Tensor, float]:
    """The `Correction` of a network that is taken at its word."""
    return eps, 0.0


@dataclass(frozen=True)
class Step:
    """What one network call of a sampler saw and made; the tensors have the shape of x_T.

    Attributes:
        index: number of the call, 0 is the noisiest.
        t: timestep that the network was given; whole for DDIM, PLMS and DDPM, any number in 0..T-1 for DPM-Solver++.
        x_t: input of the network.
        eps: its prediction, corrected.
        x0: the image that x_t and eps imply.
        x_prev: input of the next call, or the result.
    """

    index: int
    t: float
    x_t: Tensor
    eps: Tensor
    x0: Tensor
    x_prev: Tensor


class Sampler(Protocol):
    """A sampler and its settings, for pixel-space and latent models alike; `str()` names both in one line."""

    def nfe(self, num_timesteps: int) -> int:
        """Return the number of network calls per image for a schedule of T = `num_timesteps`.

        Raises:
            ValueError: the sampler cannot take its number of steps in such a schedule.
        """

    def steps(
        self, model: Model, x_T: Tensor, abar: Tensor, noise: Noise, *, correct: Correction = uncorrected
    ) -> Iterator[Step]:
        """Sample: yield one `Step` per network call; `x_prev` of the last one is the result.

        Args:
            model: `model(x_t, t)` -> eps.
            x_T: Gaussian noise, shape (B, ...).
            abar: signal power at the timesteps, shape (T,), strictly within (0, 1).
            noise: source of the noise that is added; called as often with a correction as without.
            correct: improves each prediction; called once per network call.

        Raises:
            ValueError: settings or `abar` are outside their range; at the first step at the latest.
        """


def check_schedule(sampler: Sampler, abar: Tensor) -> None:
    """Take the first step of a toy model, to find a schedule that the sampler cannot use before any work is done.

    Args:
        sampler: any.
        abar: signal power at the timesteps, shape (T,).

    Raises:
        ValueError: `abar` is outside its range, or too short for the sampler.
    """
    next(sampler.steps(lambda x, t: x, torch.zeros(1, 1), abar, torch.zeros_like))
