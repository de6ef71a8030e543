"""Error of each layer of a quantized network at each step of sampling."""

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.checks import whole
from qdiff.analysis.watching import check_full_precision, layers, quantized_network, watching
from qdiff.functional import relative_squared_error
from qdiff.pipelines.pipeline import Pipeline


@dataclass(frozen=True)
class LayerErrors:
    """Relative squared errors |y_q - y|^2 / |y|^2 of the outputs y of layers, sums over all images.

    Attributes:
        timesteps: of the S network calls, in the order of sampling.
        layers: paths in the quantized network, in the order in which it calls them.
        blocks: path of the block that each of them belongs to.
        errors: (layers, S), float64; nan or infinite where an output is zero in full precision.
    """

    timesteps: tuple[float, ...]
    layers: tuple[str, ...]
    blocks: tuple[str, ...]
    errors: Tensor


@torch.no_grad()
def layer_errors(pipeline: Pipeline, quantized: Pipeline, images: int = 4) -> LayerErrors:
    """Compare the outputs of all layers along trajectories of full precision.

    At each step both networks get the same x_t. The quantized one runs as a whole, so the error of a layer contains
    that of its inputs, from the layers before it.

    Args:
        pipeline: in full precision, loaded.
        quantized: the same model and sampling with a quantized network.
        images: the first ones of the seed, >= 1, sampled in one batch.

    Raises:
        TypeError, ValueError: `images` is not a number >= 1, one of the pipelines is not as above, or they differ in
            their sampling.
    """
    check_full_precision(pipeline)
    network, indices = quantized_network(quantized, pipeline), range(whole("images", images, 1))
    outputs: dict[str, Tensor] = {}  # of the network in full precision, in the current step; each layer has one call
    errors: dict[str, list[float]] = defaultdict(list)

    def see(path: str, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        outputs[path] = output

    def compare(path: str, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        errors[path].append(relative_squared_error(output, outputs.pop(path)))

    predict, timesteps = quantized.model_for(indices), []
    with watching(layers(pipeline.network), see), watching(network.layers(), compare):
        for step in pipeline.steps(indices):
            timesteps.append(float(step.t))
            step.predicted_by(predict)
    owner = {layer: block.path for block in network.blocks() for layer in block.layers}
    return LayerErrors(
        tuple(timesteps),
        tuple(errors),
        tuple(owner[layer] for layer in errors),
        torch.tensor([errors[layer] for layer in errors], dtype=torch.float64),
    )
