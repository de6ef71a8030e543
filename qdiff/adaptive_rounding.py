"""Learned rounding: AdaRound (Nagel et al. 2020, arXiv 2004.10568)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qdiff.functional import mean_power
from qdiff.quant_layer import UniformAffineQuantizer

GAMMA, ZETA = -0.1, 1.1  # stretch of the rectified sigmoid, equation 23
REGULARIZER_WEIGHT = 0.01
BETA_START, BETA_END = 20.0, 2.0
WARMUP = 0.2  # fraction of the iterations without regulariser
ITERATIONS, RATE = 20_000, 1e-3  # of Q-Diffusion
HIGHEST_RATE = 1e-2  # beyond it, the losses of blocks still fall, but images move away


def rectified_sigmoid(alpha: Tensor) -> Tensor:
    """Compute h(alpha) = clamp((zeta - gamma) sigmoid(alpha) + gamma, 0, 1), same shape (AdaRound, eq. 23)."""
    # hardtanh is a clamp whose gradient is one pass over the tensor
    return F.hardtanh(torch.sigmoid(alpha) * (ZETA - GAMMA) + GAMMA, 0, 1)


def rate_for(iterations: int) -> float:
    """Return the learning rate of a schedule: with fewer than 20,000 iterations, more than the paper's 1e-3.

    Adam moves alpha by about the rate in every iteration, and a rounding turns or becomes decided once alpha has moved
    by about 1. So that it can, a shorter schedule has the paper's product of the two, see docs/measurements.md.
    """
    return min(max(RATE, RATE * ITERATIONS / iterations), HIGHEST_RATE)


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

    Attributes:
        down: the weight rounded down, and clipped to the range.
        gap: from there to the weight rounded up; 0 instead of a step where both are clipped to the same value.
    """

    delta: Tensor
    zero_point: Tensor
    down: Tensor
    gap: Tensor

    def __init__(self, quantizer: UniformAffineQuantizer, weight: Tensor, alpha: Tensor | None = None):
        super().__init__()
        self.lo, self.hi = quantizer.lo, quantizer.hi
        self.register_buffer("delta", quantizer.delta.detach())
        self.register_buffer("zero_point", quantizer.zero_point)
        scaled = weight.detach() / self.delta
        floor = scaled.floor()
        down, up = self._value(floor), self._value(floor + 1)
        self.register_buffer("down", down, persistent=False)
        self.register_buffer("gap", up - down, persistent=False)
        if alpha is None:
            alpha = -torch.log((ZETA - GAMMA) / (scaled - floor - GAMMA) - 1)
        self.alpha = nn.Parameter(alpha.detach().clone())

    def _code(self, integers: Tensor) -> Tensor:
        return (integers + self.zero_point).clamp(self.lo, self.hi)

    def _value(self, integers: Tensor) -> Tensor:
        return (self._code(integers) - self.zero_point) * self.delta

    def _hard(self, weight: Tensor) -> Tensor:
        return (weight.detach() / self.delta).floor() + (self.alpha >= 0)

    def forward(self, weight: Tensor) -> Tensor:
        """Quantize `weight`, the one given at construction: soft or hard values in its shape, see the class."""
        if self.training:
            return torch.addcmul(self.down, rectified_sigmoid(self.alpha), self.gap)
        return self._value(self._hard(weight))

    def codes(self, weight: Tensor) -> Tensor:
        """Return the offset codes of the hard values of `weight`, int32 in its shape."""
        return (self._code(self._hard(weight)) - self.lo).to(torch.int32)

    def regularizer(self, beta: float) -> Tensor:
        """Compute sum(1 - |2 h(alpha) - 1|^beta), AdaRound equation 24; scalar >= 0, zero if every h is 0 or 1."""
        return self.alpha.numel() * (1 - mean_power(2 * rectified_sigmoid(self.alpha) - 1, beta))
