"""Errors of quantized networks along the trajectory of sampling."""

from collections.abc import Mapping
from dataclasses import dataclass

from diffusion.checks import whole
from qdiff.analysis.watching import check_full_precision, quantized_network
from qdiff.functional import relative_squared_error
from qdiff.pipelines.eps_error import eps_error
from qdiff.pipelines.pipeline import Pipeline


@dataclass(frozen=True)
class TrajectoryErrors:
    """Relative squared errors of one quantized network, sums over all images.

    Attributes:
        timesteps: of the S network calls, in the order of sampling.
        eps: `eps_error` at each call, (S,).
        distance: |x_q - x|^2 / |x|^2 of what each step leaves, x_prev, (S,): each network follows its own trajectory,
            from the same noise. The last one is that of the result.
    """

    timesteps: tuple[float, ...]
    eps: tuple[float, ...]
    distance: tuple[float, ...]


def trajectory_errors(
    pipeline: Pipeline, quantized: Mapping[str, Pipeline], images: int = 4
) -> dict[str, TrajectoryErrors]:
    """Measure the errors of quantized networks along the trajectory, guidance included.

    Args:
        pipeline: in full precision, loaded.
        quantized: name -> the same model and sampling with a quantized network.
        images: the first ones of the seed, >= 1, sampled in one batch.

    Raises:
        TypeError, ValueError: `images` is not a number >= 1, one of the pipelines is not as above, or they differ in
            their sampling.
    """
    check_full_precision(pipeline)
    for other in quantized.values():
        quantized_network(other, pipeline)
    indices = range(whole("images", images, 1))
    models = {name: other.model_for(indices) for name, other in quantized.items()}
    timesteps, states = [], []
    eps: dict[str, list[float]] = {name: [] for name in quantized}
    for step in pipeline.steps(indices):
        timesteps.append(float(step.t))
        states.append(step.x_prev.cpu())
        for name, model in models.items():
            eps[name].append(eps_error(model, step))
    distances = {
        name: tuple(relative_squared_error(s.x_prev.cpu(), x) for s, x in zip(other.steps(indices), states))
        for name, other in quantized.items()
    }
    return {name: TrajectoryErrors(tuple(timesteps), tuple(eps[name]), distances[name]) for name in quantized}
