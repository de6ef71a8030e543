"""Whether the parts of a correction help, on samples that were not fitted."""

from collections.abc import Iterable

import torch
from torch import Tensor

from qdiff.correction.estimates import affine, scores, slope_of
from qdiff.correction.moments import Mean, Moments, mean_of
from qdiff.correction.parts import Part, judged
from qdiff.correction.steps import StepFactors


class HeldOut:
    """Held-out samples, which judge corrections by their errors relative to those of eps_q, averaged over the steps.

    Args:
        chunks: moments of eps (x) and eps_q (y) of some samples at a time, (B, S, C, 8); read several times.
    """

    def __init__(self, chunks: Iterable[Moments]):
        self.chunks = chunks
        values = mean_of(m.values for m in chunks).mean
        self.means = next(iter(chunks)).like(values)
        error = self.means.error(torch.ones(1), torch.zeros(1))
        self.whole = float((error > 0).any())
        self.scale = torch.where(error > 0, 1 / error, 0)

    def slope(self, k: Tensor) -> Part:
        """Judge a slope, (S,), by the part of the error that is a multiple of eps.

        The squared error is no measure of it: shrinking eps_q lowers that of an error which is mere noise, too.
        """
        known, variance = slope_of(self.means)
        left = (1 + known) / (1 + k) - 1
        gain = variance * (known**2 - left**2)

        def gains(m: Moments) -> Tensor:  # of a sample, by its influence on the slope that is known
            return gain + 2 * (known - left / (1 + k)) * scores(m, self.means, known)

        return judged(self._mean(gains), self.whole)

    def bias(self, k: Tensor, bias: Tensor) -> Part:
        """Judge a bias, (S, C), beside a slope, (S,), by the squared error."""
        before, after = affine(k, torch.zeros_like(bias)), affine(k, bias)
        return judged(self._mean(lambda m: m.error(*before) - m.error(*after)), self.whole)

    def _mean(self, gains) -> Mean:
        return mean_of((gains(m) * self.scale).mean(1) for m in self.chunks)

    def variance(self, corrected: tuple[Tensor, Tensor], s: Tensor, factors: StepFactors | None) -> Part:
        """Judge whether a sampler should add less noise, because the predictions have an error of deviation `s` left.

        The noise that it leaves out and the error that takes its place are compared in three bands, see
        `Moments.bands`: an error of large blobs does not replace the noise of pixels.

        Args:
            corrected: scale and shift of the predictions.
            s: of shape (S,).
            factors: of the sampler; None for a multistep method, which adds no noise.
        """
        if factors is None or not (factors.sigma > 0).any():
            return Part(False, note="the sampler adds no noise that the error could take the place of")
        weight = torch.where(factors.sigma > 0, (factors.c / factors.sigma) ** 2, 0)  # in units of the sampler's noise
        left_out = torch.minimum(s**2, torch.where(weight > 0, 1 / weight, 0))
        white = left_out[:, None] * self.means.white
        sign = (self.means.bands(*corrected) - white).sign()

        def gains(m: Moments) -> Tensor:
            bands = m.bands(*corrected)
            return ((bands - sign * (bands - white)).sum(-1) * weight).mean(1)

        error = float((self.means.error(*corrected) * weight).mean())
        part = judged(mean_of(gains(m) for m in self.chunks), error)
        share = float((left_out * weight).sum() / (weight > 0).sum())
        note = f"the error takes the place of {100 * share:.3g} % of the sampler's noise" if part.on else part.note
        return Part(part.on, part.gain, part.error, note)
