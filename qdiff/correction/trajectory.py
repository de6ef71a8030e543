"""A fit on the quantized network's own trajectory, step after step, towards the states of full precision."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.steps import Correction, Model, Noise, Sampler, Step, uncorrected
from qdiff.correction.moments import Moments, mean_of
from qdiff.correction.parts import NOT_ASKED, Part, judged
from qdiff.correction.steps import StepFactors
from qdiff.correction.table import Fitted

RIDGE = 1e-2  # of the variance of eps_q, towards a scale of 1
SCALES = (0.8, 1.2)
NEXT = ("bias", "slope")  # in the order of decision


@dataclass(frozen=True)
class TrajectoryFit:
    """Fits eps' = K eps_q + B for each channel, so that the next state comes closest to that of full precision.

    Of a sampler with x_prev = a x_t + c eps + sigma z, both networks start from the same x_T and draw the same z, so
    the prediction that leads to the state of full precision is eps + a / c (x_t - x_t of the quantized network). K and
    B are its ridge regression on eps_q; each step is corrected before the next one is fitted. The error that remains is
    not left to the sampler's noise, which is the same for both.

    Args:
        sampler, abar: see `diffusion.steps.Sampler`.
        factors: of the sampler's steps.
        start: returns x_T of the N samples, (N, C, H, W), and a source of their noise; the same at each call.
        full_precision: returns a model that predicts eps of all samples; called for each walk, with the same result.
        quantized: returns one that predicts eps_q, on a walk with these parts in use.
    """

    sampler: Sampler
    abar: Tensor
    factors: StepFactors
    start: Callable[[], tuple[Tensor, Noise]]
    full_precision: Callable[[], Model]
    quantized: Callable[[frozenset[str]], Model]

    def run(self, asked: Collection[str]) -> Fitted:
        """Fit on the first half of the samples, and judge on the other one.

        A part helps if the results of the held-out samples come closer to those of full precision with it: bias is
        decided first, then slope.

        Args:
            asked: the parts that may be used.
        """
        best = self._walk(frozenset())
        whole = float(best.distance.mean())
        parts = dict.fromkeys(NEXT, NOT_ASKED)
        for name in NEXT:
            if name in asked:
                walk = self._walk(best.parts | {name})
                parts[name] = judged(mean_of([best.distance - walk.distance]), whole)
                best = walk if parts[name].on else best
        parts["variance"] = Part(False, note="this fit compares states that the sampler's noise is part of")
        return best.fitted(parts)

    def _walk(self, parts: frozenset[str]) -> "_Walk":
        """Sample with both networks, fitting and correcting each step of the quantized one."""
        walk = _Walk(parts, self.factors)
        model = self.quantized(parts)

        def predict(x: Tensor, t: Tensor) -> Tensor:
            walk.x_t = x
            return model(x, t)

        own = self._steps(predict, walk.correct)
        for walk.reference in self._steps(self.full_precision(), uncorrected):
            step = next(own)  # whose correction looks at the step before it here
        walk.finish(step)
        return walk

    def _steps(self, model: Model, correct: Correction) -> Iterator[Step]:
        x_T, noise = self.start()
        return self.sampler.steps(model, x_T, self.abar, noise, correct=correct)


class _Walk:
    """One walk: the corrections of its steps, and how far its results are from those of full precision."""

    reference: Step
    x_t: Tensor
    distance: Tensor

    def __init__(self, parts: frozenset[str], factors: StepFactors):
        self.parts, self.factors = parts, factors
        self.steps: list[tuple[Tensor, ...]] = []

    def correct(self, index: int, t: float, eps: Tensor) -> tuple[Tensor, float]:
        """Fit the step on the first half of the samples, and correct all."""
        a, c = self.factors.a[index].item(), self.factors.c[index].item()
        half = len(eps) // 2
        if c == 0 or not self.parts:  # nothing to fit: the state does not depend on the prediction
            self.steps.append((*torch.zeros(4, eps.shape[1], dtype=torch.float64),))
            return eps, 0.0
        target = self.reference.eps + a / c * (self.reference.x_t - self.x_t)
        found = _affine(Moments.of(target[:half], eps[:half]), self.parts)
        self.steps.append(found)
        slope, _, bias, _ = (x.to(eps.dtype).to(eps.device).view(-1, 1, 1) for x in found)
        return (eps - bias) / (1 + slope), 0.0

    def finish(self, last: Step) -> None:
        """Note the mean squared distance of each held-out result, (N / 2,)."""
        half = len(last.x_prev) // 2
        apart = (last.x_prev - self.reference.x_prev)[half:].flatten(1)
        self.distance = apart.square().mean(1).cpu().double()

    def fitted(self, parts: dict[str, Part]) -> Fitted:
        """Return the corrections of all steps."""
        slope, slope_error, bias, bias_error = map(torch.stack, zip(*self.steps))
        none = torch.zeros(len(slope), dtype=torch.float64)
        return Fitted(slope, slope_error, bias, bias_error, none, none.clone(), parts)


def _affine(m: Moments, parts: Collection[str]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return slope and bias of (eps_q - bias) / (1 + slope) with their standard errors, each (C,).

    Args:
        m: moments of the target (x) and of eps_q (y) of each sample, (B, C, 8).
        parts: what is fitted.
    """
    mean = m.like(m.values.mean(0))
    variance = mean.yy - mean.y**2
    scale = torch.ones_like(variance)
    if "slope" in parts:
        covariance = mean.xy - mean.x * mean.y
        fit = (covariance + RIDGE * variance) / ((1 + RIDGE) * variance)
        scale = torch.where(variance > 0, fit, 1).clamp(*SCALES)
    bias = mean.y - mean.x / scale if "bias" in parts else torch.zeros_like(scale)
    bias_error = mean_of([m.y - m.x / scale]).error
    score = m.xy - mean.y * m.x - mean.x * m.y + mean.x * mean.y - scale * (m.yy - 2 * mean.y * m.y + mean.y**2)
    scale_error = mean_of([score]).error / torch.where(variance > 0, variance, torch.inf)
    return 1 / scale - 1, scale_error / scale**2, bias, bias_error
