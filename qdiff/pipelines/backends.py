"""Pipelines whose quantized network an engine executes with integers, instead of simulating it."""

from typing import TypeVar

from qdiff.backends import execute, resolved
from qdiff.errors import UserError
from qdiff.evaluation.bops import without_values
from qdiff.pipelines.base import BasePipeline
from qdiff.pipelines.binding import network_digest
from qdiff.pipelines.execution import Execution
from qdiff.quant_model import QuantModel

PipelineT = TypeVar("PipelineT", bound=BasePipeline)


def check_backend(pipeline: BasePipeline) -> None:
    """Check that backends can serve a pipeline.

    Raises:
        UserError: it computes on another device than the CPU, or with fewer than 32 bits.
    """
    if pipeline.device.type != "cpu":
        raise UserError(f"--backend computes on the CPU, the device is {pipeline.device}: add --device cpu")
    if pipeline.precision != "full":
        raise UserError(f"--backend and --precision {pipeline.precision} exclude each other: leave one of them out")


def executed(pipeline: PipelineT, backend: str) -> PipelineT:
    """Return the pipeline that samples with what a backend makes of its quantized network; its correction stays.

    Args:
        pipeline: its quantized network is used up.
        backend: a name in `qdiff.backends.NAMES`.

    Raises:
        UserError: as `check_backend` and `qdiff.backends.execute`.
    """
    check_backend(pipeline)
    model = pipeline.network
    assert isinstance(model, QuantModel)
    described, digest = without_values(model), network_digest(model)
    assert isinstance(described, QuantModel)
    name = resolved(backend, phases=bool(model.policy.act_phases))
    network, report = execute(model, name, pipeline.example(1))
    other = pipeline.with_network(network)
    other.execution = Execution(name, described, digest, report)
    other.correction = pipeline.correction
    return other
