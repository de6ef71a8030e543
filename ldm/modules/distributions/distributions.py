"""The posterior of a variational autoencoder."""

import torch
from torch import Tensor


class DiagonalGaussianDistribution:
    """N(mean, exp(logvar)) for each element (Kingma and Welling 2014, appendix C.2).

    Args:
        parameters: the means, then the log variances, shape (B, 2 C, ...); log variances are clipped to -30..20.
    """

    def __init__(self, parameters: Tensor):
        self.mean, logvar = parameters.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)

    def sample(self, generator: torch.Generator) -> Tensor:
        """A draw of shape (B, C, ...) with noise from `generator`, which lives where the parameters do."""
        noise = torch.randn(self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + (0.5 * self.logvar).exp() * noise

    def mode(self) -> Tensor:
        """The most probable value, which is the mean."""
        return self.mean
