"""The posterior of a variational autoencoder."""

import torch
from torch import Tensor


class DiagonalGaussianDistribution:
    """Independent Gaussians N(mean, exp(logvar)), one per element (Kingma and Welling 2014, appendix C.2).

    Attributes:
        mean, logvar: shape (B, C, ...).

    Args:
        parameters: the means, then the log variances, shape (B, 2 C, ...); log variances are clipped to -30..20.
    """

    def __init__(self, parameters: Tensor):
        self.mean, logvar = parameters.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Sample a tensor of shape (B, C, ...) with `generator`, which is on the device of the parameters."""
        noise = torch.randn(self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + (0.5 * self.logvar).exp() * noise

    def mode(self) -> Tensor:
        """Return the mode, which is the mean, shape (B, C, ...)."""
        return self.mean
