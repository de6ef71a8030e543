"""What a model is, and what its network takes, for the results of an evaluation."""

from pathlib import Path

from omegaconf import OmegaConf

from qdiff.adapters import adapter_for
from qdiff.config.networks import network_shapes
from qdiff.evaluation.bops import empty_model
from qdiff.evaluation.record import ModelRecord
from qdiff.pipelines.pipeline import Pipeline
from qdiff.policy import QuantPolicy
from qdiff.quant_model import QuantModel


def record_of(pipeline: Pipeline) -> ModelRecord:
    """Describe the model of a pipeline; of a quantized one, the size of its file is not known."""
    network = pipeline.network
    return model_record(pipeline, network.policy if isinstance(network, QuantModel) else None)


def model_record(pipeline: Pipeline, policy: QuantPolicy | None, file: Path | None = None) -> ModelRecord:
    """Describe the model of a pipeline, which need not be loaded.

    Args:
        pipeline: the model and its sampling.
        policy: how the network is quantized; None for full precision.
        file: the quantized network; None if there is none.
    """
    network, _ = network_shapes(OmegaConf.create(pipeline.config_dict), pipeline.source)
    parameters = sum(x.numel() for x in network.parameters())
    size = 4 * parameters if policy is None else None if file is None else file.stat().st_size
    counted = network if policy is None else empty_model(network, policy, adapter_for(network))
    cost = pipeline.with_network(counted).bops()
    return ModelRecord(str(pipeline.source), parameters, size, cost.bops / len(cost.phases), cost.bops)
