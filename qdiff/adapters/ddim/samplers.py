"""How pixel-space models are sampled: the samplers of `ddim` by the names of the command line."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffusion.samplers import Model, Noise, Step, ddpm_noisy, dpm_solver, generalized, timestep_sequence
from diffusion.schedules import alphas_cumprod, beta_schedule

DPM_SPACING = {"uniform": "time_uniform", "quad": "time_quadratic"}  # --skip_type in the terms of DPM-Solver


def schedule(diffusion) -> Tensor:
    """abar_t of the section `diffusion` of a configuration; float64, shape (T,)."""
    d = diffusion
    return alphas_cumprod(beta_schedule(d.beta_schedule, d.beta_start, d.beta_end, d.num_diffusion_timesteps))


def probe(network: nn.Module, data) -> None:
    """Predict the noise of one image of the section `data` of a configuration; cheap on the meta device.

    Raises:
        ValueError, RuntimeError: the network takes no such image.
    """
    network(torch.zeros(1, data.channels, data.image_size, data.image_size), torch.zeros(1, dtype=torch.long))


def to_images(x: Tensor, data) -> Tensor:
    """What a sampler ends with -> images in -1..1, the inverse of what the training did to pixels (Song et al. 2021).

    Training takes pixels to v in 0..1; uniform dequantization spreads pixel k over [k, k + 1) / 256, so that its
    inverse rounds down; Gaussian dequantization adds noise, which cannot be undone. Then x is 2 v - 1 if `rescaled`,
    log(v / (1 - v)) if `logit_transform`, else v.

    Args:
        x: shape (B, C, H, W).
        data: section of the configuration, with these four keys.

    Returns:
        the same shape, of which what lies outside -1..1 has to be clamped; what is not finite stays so.
    """
    images = x if data.rescaled else 2 * (x.sigmoid() if data.logit_transform else x) - 1
    if data.uniform_dequantization:
        images = (128 * (images + 1)).floor().clamp(0, 255) / 127.5 - 1
    return torch.where(x.isfinite(), images, x)


@dataclass(frozen=True)
class PixelSampler:
    """A sampler and its settings; see `diffusion.samplers`.

    Args:
        diffusion: section of the configuration with the noise schedule.
        sample_type: "generalized" (DDIM), "ddpm_noisy" or "dpm_solver".
        timesteps: wanted number of steps.
        skip_type: "uniform" or "quad".
        eta: noise of "generalized", 0..1.
        dpm_order, dpm_method: of "dpm_solver".
    """

    diffusion: object
    sample_type: str
    timesteps: int
    skip_type: str
    eta: float
    dpm_order: int
    dpm_method: str

    @property
    def sequence(self) -> list[int]:
        """The timesteps that DDIM and DDPM visit. Raises ValueError for more of them than the schedule has."""
        return timestep_sequence(self.diffusion.num_diffusion_timesteps, self.timesteps, self.skip_type)

    def __str__(self) -> str:
        steps = f"steps={self.timesteps}, skip_type={self.skip_type}"
        return {
            "generalized": f"DDIM({steps}, eta={self.eta})",
            "ddpm_noisy": f"DDPM({steps})",
            "dpm_solver": f"DPMSolver({steps}, order={self.dpm_order}, method={self.dpm_method})",
        }[self.sample_type]

    def __len__(self) -> int:
        """Calls of the network per image."""
        return self.timesteps if self.sample_type == "dpm_solver" else len(self.sequence)

    def check(self) -> None:
        """Raises ValueError for a noise schedule that is none, or that the sampler cannot take its first step in."""
        x_T = torch.zeros(1, 1)
        next(self.steps(lambda x, t: x, x_T, torch.zeros_like))

    def steps(self, model: Model, x_T: Tensor, noise: Noise) -> Iterator[Step]:
        """Sample: one `Step` per call of the network, the last one's `x_prev` is the image."""
        abar = schedule(self.diffusion)
        if self.sample_type == "dpm_solver":
            return dpm_solver(
                model,
                x_T,
                abar,
                self.timesteps,
                order=self.dpm_order,
                method=self.dpm_method,
                skip_type=DPM_SPACING[self.skip_type],
            )
        if self.sample_type == "ddpm_noisy":
            return ddpm_noisy(model, x_T, self.sequence, abar, noise=noise)
        return generalized(model, x_T, self.sequence, abar, eta=self.eta, noise=noise)
