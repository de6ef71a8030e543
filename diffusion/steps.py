"""The protocol of samplers, and the types of their arguments and results: models, noise, corrections, steps."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Model = Callable[[Tensor, Tensor], Tensor]
"""`model(x_t, t)` -> eps, the predicted noise, with the shape of x_t; t has shape (B,)."""

Noise = Callable[[Tensor], Tensor]
"""`noise(x)` -> standard Gaussian noise with the shape, dtype and device of x."""

Correction = Callable[[int, float, Tensor], tuple[Tensor, float]]
"""`correct(index, t, eps)` -> (eps, s): a better prediction for network call `index`, at timestep t, and the standard
deviation s >= 0 of the Gaussian error that remains in it.

A stochastic sampler reduces the noise that it adds by the variance of that error (PTQD, He et al. 2023, section 3.3); a
deterministic one uses eps alone.
"""


def uncorrected(index: int, t: float, eps: Tensor) -> tuple[Tensor, float]:
    """Return the prediction, shape (B, ...), as it is, with no remaining error: the identity `Correction`."""
    return eps, 0.0


@dataclass(frozen=True)
class Step:
    """One network call of a sampler; all tensors have the shape of x_T.

    Attributes:
        index: number of the call, from 0, at the highest noise level.
        t: timestep of the call; an integer for DDIM, PLMS and DDPM, any number in 0..T-1 for DPM-Solver++.
        x_t: input of the network.
        eps: its prediction, corrected.
        x0: the image that x_t and eps imply.
        x_prev: input of the next call; of the last step, the result.
    """

    index: int
    t: float
    x_t: Tensor
    eps: Tensor
    x0: Tensor
    x_prev: Tensor

    def predicted_by(self, model: Model) -> Tensor:
        """Return what another model predicts for this x_t and t; the trajectory does not change."""
        return model(self.x_t, torch.full((len(self.x_t),), self.t, device=self.x_t.device))


class Sampler(Protocol):
    """A sampler and its settings, for pixel-space and latent models alike; `str()` names both on one line."""

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
            noise: source of the noise that is added; called equally often with a correction and without.
            correct: improves each prediction; called once per network call.

        Raises:
            ValueError: a setting or `abar` is outside its range; at the first step at the latest.
        """


def check_schedule(sampler: Sampler, abar: Tensor) -> None:
    """Take the sampler's first step with a toy model, so that an unusable schedule is found before any work is done.

    Args:
        sampler: any sampler.
        abar: signal power at the timesteps, shape (T,).

    Raises:
        ValueError: `abar` is outside its range, or too short for the sampler.
    """
    next(sampler.steps(lambda x, t: x, torch.zeros(1, 1), abar, torch.zeros_like))
