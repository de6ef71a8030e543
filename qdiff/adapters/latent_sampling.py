"""How latent models are sampled: the samplers of `ldm` by the names of the command line."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ldm.guidance import Condition, guided
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.samplers import Noise, Step, ddim, dpm_solver, generalized, latent_timesteps, plms


@dataclass(frozen=True)
class LatentSampling:
    """A sampler and its settings; see `ldm.samplers`.

    Args:
        num_timesteps: T of the schedule.
        sampler: "ddim", "plms", "dpm_solver" (the multistep method of order 2), or "ddpm", which visits every timestep.
        steps: wanted number of steps.
        eta: noise of "ddim", 0..1.
        scale: of guidance, see `ldm.guidance.guided`.
    """

    num_timesteps: int
    sampler: str
    steps: int
    eta: float = 0.0
    scale: float = 1.0

    @property
    def timesteps(self) -> list[int]:
        """The timesteps that DDIM and PLMS visit. Raises ValueError for steps that the schedule does not have."""
        return latent_timesteps(self.num_timesteps, self.steps)

    def __len__(self) -> int:
        """Calls of the network per image. Raises ValueError as `timesteps`."""
        match self.sampler:
            case "dpm_solver":
                return self.steps
            case "ddpm":
                return self.num_timesteps
            case "plms":
                return len(self.timesteps) + 1
            case _:
                return len(self.timesteps)

    def run(
        self, latent: LatentDiffusion, x_T: Tensor, noise: Noise, c: Condition = None, uc: Condition = None
    ) -> Iterator[Step]:
        """Sample latents: one `Step` per call of the network, `x_prev` of the last one is the result."""
        model, abar = guided(latent.apply_model, c, uc, self.scale), latent.alphas_cumprod
        match self.sampler:
            case "dpm_solver":
                return dpm_solver(model, x_T, abar, self.steps, order=2, method="multistep")
            case "ddpm":
                return generalized(model, x_T, range(self.num_timesteps), abar, eta=1.0, noise=noise)
            case "plms":
                return plms(model, x_T, self.timesteps, abar)
            case _:
                return ddim(model, x_T, self.timesteps, abar, eta=self.eta, noise=noise)
