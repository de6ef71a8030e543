"""Whether a correction brings the results of sampling closer to those of full precision."""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from qdiff.correction.moments import mean_of
from qdiff.correction.parts import CERTAIN, Part
from qdiff.correction.table import Fitted

JUDGED = ("slope", "bias")  # in the order of decision; the variance changes the noise, and so every result


def without_harm(found: Fitted, distances: Callable[[Fitted], Tensor]) -> Fitted:
    """Turn off the slope or bias of a fit that moves held-out results away from those of full precision.

    The paper's fit looks at predictions on trajectories of full precision. What removes an error there may add one on
    the trajectory that the quantized network takes by itself.

    Args:
        found: with the parts that help predictions.
        distances: samples with a correction, and returns the mean squared distance of each held-out result, (N,).
    """
    judged = [name for name in JUDGED if found.parts[name].on]
    if not judged:
        return found
    best, used, parts = distances(found.only(())), set[str](), dict(found.parts)
    for name in judged:
        other = distances(found.only({*used, name}))
        parts[name] = _judged(parts[name], best, other)
        if parts[name].on:
            best, used = other, {*used, name}
    return replace(found, parts=parts)


def _judged(part: Part, before: Tensor, after: Tensor) -> Part:
    if (before.isfinite() & ~after.isfinite()).any():
        return replace(part, on=False, note="but held-out results are not finite with it")
    growth = mean_of([after - before])
    if not growth.mean > CERTAIN * growth.error:  # also where results were not finite before
        return part
    share = 100 * float(after.mean() / before.mean() - 1)
    return replace(part, on=False, note=f"but held-out results are {share:.3g} % further from full precision with it")
