"""Error of a quantized network's predictions along the trajectories of full precision."""

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import torch

from diffusion.steps import Model, Step
from qdiff.errors import UserError
from qdiff.evaluation.record import Evaluation, Row
from qdiff.files.version import own_version
from qdiff.functional import relative_squared_error
from qdiff.pipelines.pipeline import Pipeline

EPS = "eps"  # key of its metric
MOST = 8  # images of which a metric is measured


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
        quantized: predicts eps_q; its correction, if any, is left out.
        full_precision: predicts eps, and samples with its own settings.
        indices: of the images, each >= 0.

    Returns:
        one error per network call, >= 0, from the noisiest step on.
    """
    model = quantized.model_for(indices)
    return [eps_error(model, step) for step in full_precision.steps(indices)]


def with_eps(found: Evaluation, quantized: Pipeline, full_precision: Pipeline) -> Evaluation:
    """Add the error of eps, averaged over the steps of the first images, to their evaluation.

    Raises:
        UserError: the pipelines are of models whose x_t differ in shape.
    """
    here, there = quantized.latent_shape, full_precision.latent_shape
    if here != there:
        raise UserError(f"--metrics {EPS}: x_t has the shapes {here} and {there}: compare a model with itself")
    images = range(min(MOST, found.images.number or 1))
    error = fmean(relative_eps_error(quantized, full_precision, images))
    if math.isnan(error):
        return replace(found, left_out={**found.left_out, EPS: "its value is not a number"})
    name = f"relative squared error of eps, {len(images)} images"
    value = None if math.isinf(error) else error
    return replace(found, rows=(*found.rows, Row(EPS, name, "", value, f"qdiff {own_version() or 'not installed'}")))
