"""`PLMSSampler`."""

from collections.abc import Iterator

from torch import Tensor

from ldm.models.diffusion.sampler import LatentSampler, refuse_eta
from ldm.samplers import Correction, Model, Noise, Step, latent_timesteps, plms


class PLMSSampler(LatentSampler):
    """Pseudo linear multistep, see `ldm.samplers.plms`; with one network call more than steps.

    Option of `sample`: `skip_type`, "uniform" or "quad", see `latent_timesteps`.
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
        refuse_eta(eta, "PLMS")
        abar = self.model.alphas_cumprod
        timesteps = latent_timesteps(len(abar), S, skip_type)
        return len(timesteps) + 1, plms(model, x_T, timesteps, abar, correct=correct)
