"""Noise schedule, images and samplers of pixel-space models; see `diffusion.steps.Sampler`."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffusion.checks import check_choice, check_number, whole
from diffusion.dpm_solver import dpm_solver
from diffusion.samplers import ddpm_noisy, generalized, timestep_sequence
from diffusion.schedules import alphas_cumprod, beta_schedule
from diffusion.steps import Correction, Model, Noise, Sampler, Step, uncorrected

DPM_SPACING = {"uniform": "time_uniform", "quad": "time_quadratic"}  # --skip_type in the terms of DPM-Solver
SPACING = tuple(DPM_SPACING)


def schedule(diffusion) -> Tensor:
    """Compute abar_t, float64 of shape (T,), from the section `diffusion` of a configuration.

    Raises:
        ValueError: the name of the schedule is unknown, or a number is outside its range.
    """
    d = diffusion
    return alphas_cumprod(beta_schedule(d.beta_schedule, d.beta_start, d.beta_end, d.num_diffusion_timesteps))


def example(data) -> tuple[Tensor, Tensor]:
    """Return arguments of a network for one image as the section `data` of a configuration describes it, zeros."""
    return torch.zeros(1, data.channels, data.image_size, data.image_size), torch.zeros(1, dtype=torch.long)


def probe(network: nn.Module, data) -> None:
    """Predict the noise of one image as the section `data` of a configuration describes it; cheap on the meta device.

    Raises:
        ValueError, RuntimeError: the network does not accept such images.
    """
    network(*example(data))


def to_images(x: Tensor, data) -> Tensor:
    """Convert samples to images in -1..1: the inverse of the training's data transform (Song et al. 2021).

    Training maps pixels to v in 0..1; uniform dequantization spreads pixel k over [k, k + 1) / 256, so that its inverse
    rounds down; Gaussian dequantization adds noise, which cannot be removed. Then x is 2 v - 1 if `rescaled`,
    log(v / (1 - v)) if `logit_transform`, else v.

    Args:
        x: result of a sampler, shape (B, C, H, W).
        data: section of the configuration, with the keys `rescaled`, `logit_transform` and `uniform_dequantization`.

    Returns:
        the same shape; values outside -1..1 have to be clamped, values that are not finite stay so.
    """
    images = x if data.rescaled else 2 * (x.sigmoid() if data.logit_transform else x) - 1
    if data.uniform_dequantization:
        images = (128 * (images + 1)).floor().clamp(0, 255) / 127.5 - 1
    return torch.where(x.isfinite(), images, x)


@dataclass(frozen=True)
class _Subsequence:
    """Settings of a sampler that walks a `timestep_sequence`."""

    num_steps: int
    skip_type: str = "uniform"

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_steps", whole("steps", self.num_steps, 1))
        check_choice("skip_type", self.skip_type, SPACING)

    def nfe(self, num_timesteps: int) -> int:
        return len(self._timesteps(num_timesteps))

    def _timesteps(self, num_timesteps: int) -> list[int]:
        return timestep_sequence(num_timesteps, self.num_steps, self.skip_type)


@dataclass(frozen=True)
class DDIM(_Subsequence):
    """DDIM: `diffusion.samplers.generalized` over a `timestep_sequence`.

    Args:
        num_steps: wanted number of steps, 1..T; a uniform sequence may have more.
        skip_type: spacing of the timesteps, "uniform" or "quad".
        eta: noise, 0 (deterministic) to 1.

    Raises:
        TypeError, ValueError: a setting of another type, or outside its range.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("eta", self.eta, 0, 1)

    def __str__(self) -> str:
        return f"DDIM(steps={self.num_steps}, skip_type={self.skip_type}, eta={self.eta})"

    def steps(
        self, model: Model, x_T: Tensor, abar: Tensor, noise: Noise, *, correct: Correction = uncorrected
    ) -> Iterator[Step]:
        return generalized(model, x_T, self._timesteps(len(abar)), abar, eta=self.eta, noise=noise, correct=correct)


@dataclass(frozen=True)
class DDPM(_Subsequence):
    """DDPM with clipped x0: `diffusion.samplers.ddpm_noisy` over a `timestep_sequence`.

    Args:
        num_steps, skip_type: see `DDIM`.

    Raises:
        TypeError, ValueError: see `DDIM`.
    """

    def __str__(self) -> str:
        return f"DDPM(steps={self.num_steps}, skip_type={self.skip_type})"

    def steps(
        self, model: Model, x_T: Tensor, abar: Tensor, noise: Noise, *, correct: Correction = uncorrected
    ) -> Iterator[Step]:
        return ddpm_noisy(model, x_T, self._timesteps(len(abar)), abar, noise=noise, correct=correct)


def clips(sampler: Sampler) -> bool:
    """Return whether a sampler clips x0 to [-1, 1], which suits only models trained on such images."""
    return isinstance(sampler, DDPM)


@dataclass(frozen=True)
class DPMSolver:
    """DPM-Solver++: `diffusion.dpm_solver.dpm_solver`.

    Args:
        num_steps: network calls, at least 1.
        order: 1, 2 or 3.
        method: "singlestep" or "multistep".
        skip_type: spacing of the points in time, "uniform" or "quad".

    Raises:
        TypeError, ValueError: see `DDIM`.
    """

    num_steps: int
    order: int = 3
    method: str = "singlestep"
    skip_type: str = "uniform"

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_steps", whole("steps", self.num_steps, 1))
        object.__setattr__(self, "order", whole("order", self.order, 1, 3))
        check_choice("method", self.method, ("singlestep", "multistep"))
        check_choice("skip_type", self.skip_type, SPACING)

    def __str__(self) -> str:
        settings = f"skip_type={self.skip_type}, order={self.order}, method={self.method}"
        return f"DPMSolver(steps={self.num_steps}, {settings})"

    def nfe(self, num_timesteps: int) -> int:
        return self.num_steps

    def steps(
        self, model: Model, x_T: Tensor, abar: Tensor, noise: Noise, *, correct: Correction = uncorrected
    ) -> Iterator[Step]:
        return dpm_solver(
            model,
            x_T,
            abar,
            self.num_steps,
            order=self.order,
            method=self.method,
            skip_type=DPM_SPACING[self.skip_type],
            correct=correct,
        )
