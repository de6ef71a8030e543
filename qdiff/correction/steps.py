"""What a sampler does at each step, found out with a toy model: x_prev = a x_t + c eps + sigma z."""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.steps import Sampler

ROWS = 8
SMALL, LARGE = 1e-6, 1e3  # of the toy's numbers: where no sampler clips, and where one that clips does
EXACT = 1e-7  # relative error of a step that is linear in these numbers
DIGITS = 9


@dataclass(frozen=True)
class StepFactors:
    """Factors of x_t, of the prediction and of the noise in each x_prev; float64 of shape (S,)."""

    a: Tensor
    c: Tensor
    sigma: Tensor


def step_factors(sampler: Sampler, abar: Tensor, *, clipped: bool = False) -> StepFactors | None:
    """Return the factors of a sampler's steps; None if a step also depends on earlier ones, as in multistep methods.

    Args:
        sampler, abar: see `diffusion.steps.Sampler`.
        clipped: also return None if the sampler clips, so that the factors hold for small numbers alone.
    """
    found = _probed(sampler, abar, SMALL)
    return found if found is None or not clipped or _probed(sampler, abar, LARGE) is not None else None


def _probed(sampler: Sampler, abar: Tensor, size: float) -> StepFactors | None:
    generator, drawn = torch.Generator().manual_seed(0), [torch.zeros(ROWS, 1)]

    def draw() -> Tensor:
        return size * torch.randn(ROWS, 1, generator=generator, dtype=torch.float64)

    def noise(x: Tensor) -> Tensor:
        drawn[0] = draw()
        return drawn[0]

    factors = []
    for step in sampler.steps(lambda x, t: draw(), draw(), abar, noise):
        noisy = bool(drawn[0].any())
        columns = torch.cat([step.x_t, step.eps, *[drawn[0]] * noisy], 1)
        solution = torch.linalg.lstsq(columns, step.x_prev).solution
        if torch.dist(columns @ solution, step.x_prev) > EXACT * step.x_prev.norm():
            return None
        factors.append([*solution.flatten().tolist(), 0.0][:3])
        drawn[0] = torch.zeros(ROWS, 1)
    found = torch.tensor(factors, dtype=torch.float64)
    # Rounded, because the last digits of lstsq differ from call to call, and repeated timesteps have c = 0
    return StepFactors(*found.round(decimals=DIGITS).unbind(1))
