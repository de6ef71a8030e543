"""`quantize`: calibrate the network of a pipeline in one call."""

import copy
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import TypeVar

from torch import nn

from qdiff.block_recon import Schedule
from qdiff.calibration.settings import CalibrationSettings
from qdiff.pipelines.calibrate import Calibrate
from qdiff.pipelines.calibration_set import DataSettings
from qdiff.pipelines.pipeline import Pipeline
from qdiff.policy import QuantPolicy, QuantSpec

AnyPipeline = TypeVar("AnyPipeline", bound=Pipeline)

METHODS = ("qdiff", "linear")


def quantize(
    pipeline: AnyPipeline,
    *,
    weight_bits: int = 8,
    act_bits: int | None = None,
    softmax_bits: int = 8,
    split: bool = False,
    symmetric: bool = False,
    method: str = "qdiff",
    iterations: int = 20_000,
    act_iterations: int | None = None,
    lr: float = 1e-3,
    act_lr: float = 4e-4,
    timesteps: int = 20,
    samples: int = 8,
    batch_size: int = 32,
    data: str | Path | None = None,
    folder: str | Path | None = None,
    memory_bytes: int | None = None,
    policy: QuantPolicy | None = None,
    progress: bool = False,
) -> AnyPipeline:
    """Quantize the network of a pipeline (Q-Diffusion, Li et al. 2023) and return the pipeline that samples with it.

    The pipeline that is passed stays in full precision; both share what is not quantized.

    Args:
        pipeline: in full precision, loaded.
        weight_bits: 2..8.
        act_bits: of activations, 2..16; None leaves them in floating point.
        softmax_bits: of attention after its softmax, 2..16.
        split: quantize the two halves of shortcut layers by themselves (section 3.3).
        symmetric: activation ranges symmetric around zero.
        method: "qdiff" learns roundings and step sizes; "linear" rounds to nearest, with ranges from the extremes.
        iterations: per block, for roundings; 20,000 in the paper.
        act_iterations: per block, for activation step sizes; None takes a quarter of `iterations`, as in the paper.
        lr, act_lr: learning rates. With few iterations, 4e-3 for roundings is better than the paper's 1e-3.
        timesteps: sampling steps at which calibration data are collected; at most as many as the pipeline takes.
        samples: at each of these steps; 256 in the paper.
        batch_size: of an iteration.
        data: file of calibration data; None collects them from the pipeline's own sampling.
        folder: keeps data, journal and the quantized file, so that the same call resumes; None keeps nothing.
        memory_bytes: for captured activations; None takes half of what computing leaves free.
        policy: in place of the bits, `softmax_bits`, `split` and `symmetric`: how each layer is quantized, and in which
            phases of sampling. Every phase needs one of the `timesteps` at least.
        progress: show progress bars.

    Raises:
        ValueError: an argument is outside its range, or the pipeline is quantized.
        UserError: too little memory or disk, data that do not fit, a loss that is not finite.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not '{method}'")
    if pipeline.is_quantized:
        raise ValueError("the pipeline is quantized already: pass one in full precision")
    learns = method == "qdiff"
    search = "mse" if learns else "minmax"
    if policy is None:
        act = None if act_bits is None else QuantSpec(act_bits, symmetric=symmetric, range_search=search)
        weight = QuantSpec(weight_bits, per_channel=True, range_search="minmax")
        policy = QuantPolicy(weight, act, softmax_bits, split)
    steps = iterations // 4 if act_iterations is None else act_iterations
    learning = CalibrationSettings(
        batch_size=batch_size,
        rounding=Schedule(iterations, lr) if learns else None,
        steps=Schedule(max(1, steps), act_lr) if learns and policy.act else None,
        seed=pipeline.sampling.seed,
    )
    source = DataSettings(min(timesteps, pipeline.nfe), samples, None if data is None else Path(data))
    job = Calibrate(policy, learning, source, memory_bytes)
    unquantized = pipeline.with_network(share_parameters(pipeline.network))
    with tempfile.TemporaryDirectory() if folder is None else nullcontext(folder) as place:
        Path(place).mkdir(parents=True, exist_ok=True)
        return pipeline.with_network(job.run(unquantized, Path(place), progress=progress))


def share_parameters(network: nn.Module) -> nn.Module:
    """Copy a network's modules, but not its parameters and buffers, so that leaves of the copy may be replaced."""
    shared = {id(x): x for x in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, shared)
