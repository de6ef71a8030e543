"""The paper's fit: both networks predict on the trajectories of full precision (PTQD, He et al. 2023, section 3.2)."""

from collections.abc import Callable, Collection, Iterable

import torch
from torch import Tensor

from qdiff.correction.estimates import affine, deviations, scores, slope_of
from qdiff.correction.held_out import HeldOut
from qdiff.correction.moments import Moments, mean_of
from qdiff.correction.parts import NOT_ASKED
from qdiff.correction.results import without_harm
from qdiff.correction.steps import StepFactors
from qdiff.correction.table import Fitted


def fit_predictions(
    fitted: Iterable[Moments],
    held_out: Iterable[Moments],
    asked: Collection[str],
    factors: StepFactors | None,
    distances: Callable[[Fitted], Tensor] | None = None,
) -> Fitted:
    """Fit the correlation, the bias and the deviation of the error of eps_q at each step.

    The slope is that of the least-squares line of the error on eps, over all channels; a negative one counts as 0. Bias
    is the mean error of a channel, `std` the mean over samples of the standard deviation of the error without its
    correlated part. Standard errors are over samples, as if the pixels of one were a single observation.

    Args:
        fitted, held_out: moments of eps (x) and eps_q (y) of some samples at a time, (B, S, C, 8); read several times.
        asked: the parts that may be used, of which held-out samples decide; see `HeldOut`.
        factors: of the sampler; None if it is a multistep method.
        distances: of the held-out results, see `without_harm`; None leaves them alone.
    """
    means = next(iter(fitted)).like(mean_of(m.values for m in fitted).mean)
    raw, variance = slope_of(means)
    k = raw.clamp(min=0)
    bias, bias_error = means.y - means.x, mean_of(m.y - m.x for m in fitted).error
    slope_error = mean_of(scores(m, means, raw) for m in fitted).error / torch.where(variance > 0, variance, torch.inf)

    judge, parts = HeldOut(held_out), {}
    parts["slope"] = judge.slope(k) if "slope" in asked else NOT_ASKED
    parts["bias"] = judge.bias(k * parts["slope"].on, bias) if "bias" in asked else NOT_ASKED
    parts["variance"] = NOT_ASKED  # before it is known what the others leave
    slope, slope_error = (x[:, None].expand_as(bias).clone() for x in (k, slope_error))
    found = Fitted(slope, slope_error, bias, bias_error, torch.zeros_like(k), torch.zeros_like(k), parts)
    parts = dict((without_harm(found, distances) if distances else found).parts)
    used = k * parts["slope"].on
    std = mean_of(deviations(m, used) for m in fitted)
    corrected = affine(used, bias * parts["bias"].on)
    parts["variance"] = judge.variance(corrected, std.mean / (1 + used), factors) if "variance" in asked else NOT_ASKED
    return Fitted(slope, slope_error, bias, bias_error, std.mean, std.error, parts)
