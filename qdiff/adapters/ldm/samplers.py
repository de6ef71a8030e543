"""Samplers of latent models; see `diffusion.steps.Sampler`."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from diffusion.checks import check_number, whole
from diffusion.dpm_solver import dpm_solver
from diffusion.samplers import generalized
from diffusion.steps import Correction, Model, Noise, Step, uncorrected
from ldm.samplers import ddim, latent_timesteps, plms


@dataclass(frozen=True)
class DDIM:
    """DDIM: `ldm.samplers.ddim` over `latent_timesteps`.

    Args:
        num_steps: wanted number of steps, 1..T.
        eta: noise, 0 (deterministic) to 1.

    Raises:
        TypeError, ValueError: a setting of another type, or outside its range.
    """

    num_steps: int
    eta: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_steps", whole("steps", self.num_steps, 1))
        check_number("eta", self.eta, 0, 1)

    def __str__(self) -> str:
        return f"DDIM(steps={self.num_steps}, eta={self.eta})"

    def nfe(self, num_timesteps: int) -> int:
        return len(latent_timesteps(num_timesteps, self.num_steps))

    def steps(
        self, model: Model, x_T: Tensor, abar: Tensor, noise: Noise, *, correct: Correction = uncorrected
    ) -> Iterator[Step]:
        timesteps = latent_timesteps(len(abar), self.num_steps)
        return ddim(model, x_T, timesteps, abar, eta=self.eta, noise=noise, correct=correct)


@dataclass(frozen=True)
class PLMS:
    """PLMS: `ldm.samplers.plms` over `latent_timesteps`; its first step takes two network calls.

    Args:
        num_steps: wanted number of steps, 1..T.

    Raises:
        TypeError, ValueError: see `DDIM`.
    """

    num_steps: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_steps", whole("steps", self.num_steps, 1))

    def __str__(self) -> str:
        return f"PLMS(steps={self.num_steps})"

    def nfe(self, num_timesteps: int) -> int:
        return len(latent_timesteps(num_timesteps, self.num_steps)) + 1

    def steps(
        self, model: Model, x_T: Tensor, abar: Tensor, noise: Noise, *, correct: Correction = uncorrected
    ) -> Iterator[Step]:
        return plms(model, x_T, latent_timesteps(len(abar), self.num_steps), abar, correct=correct)


@dataclass(frozen=True)
class DPMSolver:
    """DPM-Solver++, multistep of order 2: `diffusion.dpm_solver.dpm_solver`.

    Args:
        num_steps: network calls, at least 1.

    Raises:
        TypeError, ValueError: see `DDIM`.
    """

    num_steps: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_steps", whole("steps", self.num_steps, 1))

    def __str__(self) -> str:
        return f"DPMSolver(steps={self.num_steps})"

    def nfe(self, num_timesteps: int) -> int:
        if num_timesteps < 2:
            raise ValueError("DPM-Solver needs a schedule of at least two timesteps")
        return self.num_steps

    def steps(
        self, model: Model, x_T: Tensor, abar: Tensor, noise: Noise, *, correct: Correction = uncorrected
    ) -> Iterator[Step]:
        return dpm_solver(model, x_T, abar, self.num_steps, order=2, method="multistep", correct=correct)


@dataclass(frozen=True)
class DDPM:
    """Ancestral sampling over every timestep: `diffusion.samplers.generalized` with eta 1."""

    def __str__(self) -> str:
        return "DDPM()"

    def nfe(self, num_timesteps: int) -> int:
        return num_timesteps

    def steps(
        self, model: Model, x_T: Tensor, abar: Tensor, noise: Noise, *, correct: Correction = uncorrected
    ) -> Iterator[Step]:
        return generalized(model, x_T, range(len(abar)), abar, eta=1.0, noise=noise, correct=correct)
