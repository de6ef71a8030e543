"""Learned rounding: AdaRound (Nagel et al. 2020, arXiv 2004.10568)."""

import torch
from torch import Tensor, nn

from qdiff.quant_layer import UniformAffineQuantizer

GAMMA, ZETA = -0.1, 1.1  # stretch of the rectified sigmoid, equation 23
REGULARIZER_WEIGHT = 0.01
BETA_START, BETA_END = 20.0, 2.0
WARMUP = 0.2  # fraction of the iterations without regulariser


def rectified_sigmoid(alpha: Tensor) -> Tensor:
    """Compute h(alpha) = clamp((zeta - gamma) sigmoid(alpha) + gamma, 0, 1), same shape (AdaRound, eq. 23)."""
    return (torch.sigmoid(alpha) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def beta_at(iteration: int, iterations: int) -> float | None:
    """Return the exponent of the regulariser: None during the warm-up, then linear from 20 to 2."""
    start = WARMUP * iterations
    if iteration < start:
        return None
    return BETA_END + (BETA_START - BETA_END) * max(0.0, 1 - (iteration - start) / (iterations - start))


class AdaRoundQuantizer(nn.Module):
    """Rounding up or down, learned for every weight (AdaRound, section 3).

    In training mode the values are soft, floor(w / delta) + h(alpha), so that alpha has a gradient; in evaluation mode
    they are hard, floor(w / delta) + (alpha >= 0). With the initial alpha the soft value is w, clipped to the range.

    Args:
        quantizer: gives step size, zero point and bounds.
        weight: the weight to round, of any shape that the step size broadcasts to.
        alpha: initial value, shaped like `weight`, instead of the one above.
    """

    delta: Tensor
    zero_point: Tensor

    def __init__(self, quantizer: UniformAffineQuantizer, weight: Tensor, alpha: Tensor | None = None):
        super().__init__()
        self.lo, self.hi = quantizer.lo, quantizer.hi
        self.register_buffer("delta", quantizer.delta.detach())
        self.register_buffer("zero_point", quantizer.zero_point)
        if alpha is None:
            scaled = weight.detach() / self.delta
            rest = scaled - scaled.floor()
            alpha = -torch.log((ZETA - GAMMA) / (rest - GAMMA) - 1)
        self.alpha = nn.Parameter(alpha.detach().clone())

    def forward(self, weight: Tensor) -> Tensor:
        """Quantize `weight`: soft values in training mode, hard ones in evaluation mode; returns its shape."""
        up = rectified_sigmoid(self.alpha) if self.training else (self.alpha >= 0).to(weight.dtype)
        codes = (weight / self.delta).floor() + up + self.zero_point
        return (codes.clamp(self.lo, self.hi) - self.zero_point) * self.delta

    def codes(self, weight: Tensor) -> Tensor:
        """Return the offset codes of the hard values of `weight`, int32 in its shape."""
        codes = (weight / self.delta).floor() + (self.alpha >= 0) + self.zero_point
        return (codes.clamp(self.lo, self.hi) - self.lo).to(torch.int32)

    def regularizer(self, beta: float) -> Tensor:
        """Compute sum(1 - |2 h(alpha) - 1|^beta), AdaRound equation 24; scalar >= 0, zero if every h is 0 or 1."""
        return (1 - (2 * rectified_sigmoid(self.alpha) - 1).abs().pow(beta)).sum()
