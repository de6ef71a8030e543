"""How pixel-space models are sampled: the samplers of `ddim` by the names of the command line."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ddim.samplers import Model, Noise, Step, ddpm_noisy, dpm_solver, generalized, timestep_sequence
from ddim.schedules import alphas_cumprod, beta_schedule

DPM_SPACING = {"uniform": "time_uniform", "quad": "time_quadratic"}  # --skip_type in the terms of DPM-Solver


def schedule(diffusion) -> Tensor:
    """abar_t of the section `diffusion` of a configuration; float64, shape (T,)."""
    d = diffusion
    return alphas_cumprod(beta_schedule(d.beta_schedule, d.beta_start, d.beta_end, d.num_diffusion_timesteps))


@dataclass(frozen=True)
class PixelSampler:
    """A sampler and its settings; see `ddim.samplers`.

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

    def __len__(self) -> int:
        """Calls of the network per image."""
        return self.timesteps if self.sample_type == "dpm_solver" else len(self.sequence)

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
