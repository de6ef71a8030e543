"""`PLMSSampler` under its published path."""

from collections.abc import Iterator

from diffusion.steps import Step
from ldm.models.diffusion.sampler import LatentSampler, Start
from ldm.samplers import latent_timesteps, plms


class PLMSSampler(LatentSampler):
    """Pseudo linear multistep, see `ldm.samplers.plms`; it takes one network call more than steps.

    Option of `sample`: `skip_type`, "uniform" or "quad", see `latent_timesteps`.
    """

    def _steps(self, start: Start, S: int, *, skip_type: str = "uniform") -> tuple[int, Iterator[Step]]:
        start.refuse_eta("PLMS")
        abar = self.model.alphas_cumprod
        timesteps = latent_timesteps(len(abar), S, skip_type)
        return len(timesteps) + 1, plms(start.model, start.x_T, timesteps, abar, correct=start.correct)
