"""How latent models are sampled: the samplers of `ldm` with their settings and their number of network calls."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ldm.samplers import Model, Noise, Step, ddim, dpm_solver, generalized, latent_timesteps, plms


class Sampler(Protocol):
    """A sampler of latents."""

    def calls(self, num_timesteps: int) -> int:
        """Calls of the network per image, for a schedule of that length. Raises ValueError for impossible steps."""

    def run(self, model: Model, x_T: Tensor, abar: Tensor, noise: Noise) -> Iterator[Step]:
        """Sample: one `Step` per call of the network, `x_prev` of the last one is the result; see `ldm.samplers`."""


@dataclass(frozen=True)
class DDIM:
    """`ldm.samplers.ddim` with `eta` in 0..1."""

    steps: int
    eta: float

    def calls(self, num_timesteps: int) -> int:
        return len(latent_timesteps(num_timesteps, self.steps))

    def run(self, model: Model, x_T: Tensor, abar: Tensor, noise: Noise) -> Iterator[Step]:
        return ddim(model, x_T, latent_timesteps(len(abar), self.steps), abar, eta=self.eta, noise=noise)


@dataclass(frozen=True)
class PLMS:
    """`ldm.samplers.plms`."""

    steps: int

    def calls(self, num_timesteps: int) -> int:
        return len(latent_timesteps(num_timesteps, self.steps)) + 1

    def run(self, model: Model, x_T: Tensor, abar: Tensor, noise: Noise) -> Iterator[Step]:
        return plms(model, x_T, latent_timesteps(len(abar), self.steps), abar)


@dataclass(frozen=True)
class DPMSolver:
    """`ldm.samplers.dpm_solver`, the multistep method of order 2."""

    steps: int

    def calls(self, num_timesteps: int) -> int:
        if num_timesteps < 2:
            raise ValueError("DPM-Solver needs a schedule of at least two timesteps")
        return self.steps

    def run(self, model: Model, x_T: Tensor, abar: Tensor, noise: Noise) -> Iterator[Step]:
        return dpm_solver(model, x_T, abar, self.steps, order=2, method="multistep")


@dataclass(frozen=True)
class DDPM:
    """Ancestral sampling over every timestep."""

    def calls(self, num_timesteps: int) -> int:
        return num_timesteps

    def run(self, model: Model, x_T: Tensor, abar: Tensor, noise: Noise) -> Iterator[Step]:
        return generalized(model, x_T, range(len(abar)), abar, eta=1.0, noise=noise)
