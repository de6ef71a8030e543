"""What a run takes, in seconds and bytes, measured before it starts."""

from dataclasses import dataclass

import torch
from torch import nn

from qdiff.calibration.measure import forward_seconds
from qdiff.calibration.memory import batch_peak
from qdiff.calibration.plan import Plan
from qdiff.packing import packed_size
from qdiff.pipelines.pipeline import Pipeline
from qdiff.pipelines.quantization import Quantization
from qdiff.quant_layer import QuantModule

FLOAT = 4  # bytes


@dataclass(frozen=True)
class Cost:
    """What a run takes.

    Attributes:
        image: seconds of sampling one image.
        calibration: seconds of the calibration, with the sensitivity spectrum and without collecting data.
        memory: peak bytes of weights and tensors.
        network_file: about the bytes of the file with the quantized network; 0 in full precision.
        inputs: bytes of the network's inputs for an image at one step, of which calibration data consist.
        captured_files: bytes of activations that files hold while a block is calibrated.
    """

    image: float
    calibration: float
    memory: int
    network_file: int
    inputs: int
    captured_files: int


def measured_cost(pipeline: Pipeline, quantization: Quantization | None) -> Cost:
    """Measure a run with random weights.

    Args:
        pipeline: not loaded; its network is changed.
        quantization: how the network is quantized; None for full precision.

    Raises:
        UserError: the settings do not fit the model, or a file does not.
    """
    pipeline.init_random()
    weights = FLOAT * sum(x.numel() for x in pipeline.module.parameters())
    plan = None
    if quantization:
        quantization.check(pipeline)
        plan = quantization.plan(pipeline, 1)
    example, batch = pipeline.example(1), pipeline.batch_size * pipeline.cfg_copies
    with torch.no_grad():
        sampling = batch_peak(pipeline.network, pipeline.network, example, batch)
    each = forward_seconds(pipeline.network, example) * pipeline.cfg_copies * pipeline.nfe
    return Cost(
        each,
        plan.seconds + plan.seconds_before if plan else 0.0,
        weights + max(sampling, _peak(plan) if plan else 0),
        _file_bytes(pipeline.network),
        example.sample_bytes * pipeline.cfg_copies,
        plan.processes * plan.on_disk_bytes if plan else 0,
    )


def _peak(plan: Plan) -> int:
    return plan.data_bytes + plan.processes * (plan.in_memory_bytes + plan.cached_bytes + plan.working_bytes)


def _file_bytes(network: nn.Module) -> int:
    """Return the bytes of packed codes and of what else a network has; 0 if none of its layers is quantized."""
    layers = [module for module in network.modules() if isinstance(module, QuantModule)]
    packed = sum(packed_size(layer.codes.numel(), layer.weight_quantizer.quantizers()[0].spec.bits) for layer in layers)
    unpacked = {id(layer.weight) for layer in layers}
    floats = sum(x.numel() for x in network.parameters() if id(x) not in unpacked)
    return packed + FLOAT * floats if layers else 0
