"""Error of a quantized network's predictions along the trajectories of full precision."""

from collections.abc import Sequence

import torch

from diffusion.steps import Model, Step
from qdiff.functional import relative_squared_error
from qdiff.pipelines.pipeline import Pipeline


@torch.no_grad()
def eps_error(model: Model, step: Step) -> float:
    """Compute |eps_q - eps|^2 / |eps|^2, sums over all images, at a step of full-precision sampling.

    Both networks get the same x_t and t, so errors do not accumulate, unlike in the images.

    Args:
        model: predicts eps_q.
        step: has eps, in full precision.
    """
    return relative_squared_error(step.predicted_by(model), step.eps)


def relative_eps_error(quantized: Pipeline, full_precision: Pipeline, indices: Sequence[int]) -> list[float]:
    """Compute `eps_error` at each step of full-precision sampling, guidance included.

    Args:
        quantized: predicts eps_q.
        full_precision: predicts eps, and samples with its own settings.
        indices: of the images, each >= 0.

    Returns:
        one error per network call, >= 0, from the noisiest step on.
    """
    model = quantized.model_for(indices)
    return [eps_error(model, step) for step in full_precision.steps(indices)]
