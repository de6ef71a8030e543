"""Error of a quantized network's predictions along the trajectories of full precision."""

from collections.abc import Sequence

import torch

from qdiff.pipelines.pipeline import Pipeline


@torch.no_grad()
def relative_eps_error(quantized: Pipeline, full_precision: Pipeline, indices: Sequence[int]) -> list[float]:
    """Compute |eps_q - eps|^2 / |eps|^2 at each step of full-precision sampling, guidance included.

    Both networks get the same x_t and t, so errors do not accumulate, unlike in the images.

    Args:
        quantized: predicts eps_q.
        full_precision: predicts eps, and samples with its own settings.
        indices: of the images, each >= 0; the sums of squares are over all of them.

    Returns:
        one error per network call, >= 0, from the noisiest step on.
    """
    model = quantized.model_for(indices)
    errors = []
    for step in full_precision.steps(indices):
        t = torch.full((len(indices),), step.t, device=step.x_t.device)
        difference = model(step.x_t, t) - step.eps
        errors.append((difference.square().sum() / step.eps.square().sum()).item())
    return errors
