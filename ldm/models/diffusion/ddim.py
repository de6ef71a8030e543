"""`DDIMSampler`."""

from collections.abc import Iterator

from torch import Tensor

from ldm.models.diffusion.sampler import LatentSampler
from ldm.samplers import Correction, Model, Noise, Step, ddim, latent_timesteps


class DDIMSampler(LatentSampler):
    """DDIM, see `ldm.samplers.ddim`.

    Option of `sample`: `skip_type`, "uniform" or "quad", see `latent_timesteps`. "uniform" takes more than S steps
    where S does not divide T.
    """

    def _steps(
        self,
        model: Model,
        x_T: Tensor,
        S: int,
        *,
        eta: float,
        noise: Noise,
        correct: Correction,
        skip_type: str = "uniform",
    ) -> tuple[int, Iterator[Step]]:
        abar = self.model.alphas_cumprod
        timesteps = latent_timesteps(len(abar), S, skip_type)
        return len(timesteps), ddim(model, x_T, timesteps, abar, eta=eta, noise=noise, correct=correct)
