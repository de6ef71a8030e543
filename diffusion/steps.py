"""What every sampler takes and yields: a model, noise, a correction of its predictions, and the steps."""

from collections.abc import Callable
from dataclasses import dataclass

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
