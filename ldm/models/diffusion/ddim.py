"""`DDIMSampler` under its published path."""

from collections.abc import Iterator

from diffusion.steps import Step
from ldm.models.diffusion.sampler import LatentSampler, Start
from ldm.samplers import ddim, latent_timesteps


class DDIMSampler(LatentSampler):
    """DDIM, see `ldm.samplers.ddim`.

    Option of `sample`: `skip_type`, "uniform" or "quad", see `latent_timesteps`. "uniform" takes more than S steps if S
    does not divide T.
    """

    def _steps(self, start: Start, S: int, *, skip_type: str = "uniform") -> tuple[int, Iterator[Step]]:
        abar = self.model.alphas_cumprod
        timesteps = latent_timesteps(len(abar), S, skip_type)
        return len(timesteps), ddim(
            start.model, start.x_T, timesteps, abar, eta=start.eta, noise=start.noise, correct=start.correct
        )
