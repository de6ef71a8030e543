"""`quantize`: calibrate the network of a pipeline in one call."""

import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TypeVar

from diffusion.checks import check_choice, check_number, whole
from qdiff.adapters import adapter_for
from qdiff.block_recon import Schedule
from qdiff.files.refusals import explaining
from qdiff.pipelines.calibrate import SPECTRUM_IMAGES, Calibrate
from qdiff.pipelines.calibration_set import DataSettings
from qdiff.pipelines.methods import METHODS, learning, rounding_schedule, uniform_policy
from qdiff.pipelines.mixed_precision import mixed_precision_of
from qdiff.pipelines.paths import as_path
from qdiff.pipelines.pipeline import Pipeline
from qdiff.pipelines.sharing import share_parameters
from qdiff.policy import QuantPolicy

AnyPipeline = TypeVar("AnyPipeline", bound=Pipeline)

RATES = (1e-8, 1.0)  # range of learning rates
BITS = (8, None, 8, False, False, False)  # defaults of the arguments that a policy replaces


def quantize(
    pipeline: AnyPipeline,
    *,
    weight_bits: int = 8,
    act_bits: int | None = None,
    softmax_bits: int = 8,
    split: bool = False,
    symmetric: bool = False,
    symmetric_weights: bool = False,
    method: str = "qdiff",
    iterations: int = 20_000,
    act_iterations: int | None = None,
    lr: float | None = None,
    act_lr: float = 4e-4,
    timesteps: int = 20,
    samples: int = 8,
    batch_size: int = 32,
    spectrum_images: int = SPECTRUM_IMAGES,
    correct_bias: bool = False,
    act_groups: int = 1,
    keep8: Sequence[str] = (),
    mixed_precision: Sequence[int] = (),
    bops_budget: float | None = None,
    snr_ratio: str = "norm",
    data: str | Path | None = None,
    folder: str | Path | None = None,
    memory_bytes: int | None = None,
    policy: QuantPolicy | None = None,
    devices: int = 1,
    progress: bool = False,
) -> AnyPipeline:
    """Quantize the network of a pipeline (Q-Diffusion, Li et al. 2023) and return the pipeline that samples with it.

    The given pipeline stays in full precision; the two share all tensors that are not quantized.

    Args:
        pipeline: in full precision, loaded.
        weight_bits: bits per weight, 2..8.
        act_bits: bits per activation, 2..16; None leaves activations in floating point.
        softmax_bits: bits per attention weight (after the softmax), 2..16.
        split: quantize the two halves of shortcut layers separately (section 3.3).
        symmetric: activation ranges symmetric around zero.
        symmetric_weights: weight ranges too; at 8 bits, backends are faster by it.
        method: "qdiff" learns roundings and step sizes; "gptq" finds weights in closed form, without
            learning; "squant" rounds weights without data so that errors cancel; "linear" rounds to nearest. The last
            two take ranges from the extremes.
        iterations: per block, for roundings, >= 1; 20,000 in the paper.
        act_iterations: per block, for activation step sizes, >= 1; None takes a quarter of `iterations`, as in the
            paper.
        lr: learning rate of roundings, 1e-8..1; None takes 20 / `iterations`, limited to 0.001..0.01: the paper's 1e-3
            for its 20,000 iterations, more for fewer.
        act_lr: learning rate of activation step sizes, 1e-8..1.
        timesteps: number of sampling steps of each image at which calibration data are collected, >= 1; at most as many
            as the pipeline takes.
        samples: images, >= 1, each at steps of its own, together at all; 256 in the paper.
        batch_size: samples per iteration, >= 1.
        spectrum_images: images on which "gptq" and `correct_bias` measure what errors do to the image
            (`qdiff.spectrum`), by which they are weighted then; 0 weighs all errors alike.
        correct_bias: at the end, correct biases so that each layer's output has its mean in full precision (Nagel et
            al. 2019). Not in the paper; worth most after few `iterations`.
        act_groups: groups of consecutive sampling steps with activation ranges of their own, >= 1 and at most
            `timesteps`.
        keep8: layers that have 8 bits, weights and activations: "ends", the first and the last one, "time", those of
            the time embedding.
        mixed_precision: fewer bits than `act_bits`, 2 or more, that activations have at the steps where these are
            enough (PTQD, He et al. 2023, section 3.4); all steps need calibration data.
        bops_budget: chooses those steps so that predicted errors of the image are least, within this share, above 0 and
            at most 1, of the bit operations of `act_bits` at all steps; None takes the criterion of the paper.
        snr_ratio: of the paper's criterion: "norm" compares |eps| / |error| with the signal-to-noise ratio of the
            forward process, as printed, "power" its square.
        data: file of calibration data; None collects them from the pipeline's own sampling.
        folder: keeps data, journal and the quantized file, so that the same call resumes; None keeps nothing.
        memory_bytes: budget for captured activations, >= 0; None takes half of the memory that computing leaves free.
        policy: how each layer is quantized, and in which phases of sampling, instead of bits, `split`, `symmetric` and
            `symmetric_weights`. Each phase needs at least one of the `timesteps`.
        devices: GPUs, from the pipeline's on, or processes on a CPU, that share every batch of "qdiff", >= 1; they must
            divide `batch_size` evenly. More than one needs a script that calls this under `if __name__ == "__main__"`,
            because each process imports it. The result is the same, up to the order of sums.
        progress: show progress bars.

    Raises:
        TypeError: an argument has another type.
        ValueError: an argument is outside its range, the pipeline is quantized, or a rule of `policy` matches nothing.
        UserError: too little memory or disk, data that do not fit, a folder of another calibration, a loss that is
            not finite, or `devices` that cannot share the work.
    """
    if not isinstance(pipeline, Pipeline):
        raise TypeError(f"pipeline must be one that qdiff.load_pipeline returned, not {type(pipeline).__name__}")
    if pipeline.is_quantized:
        raise ValueError("the pipeline is quantized already: give one in full precision")
    pipeline.check_loaded()
    check_choice("method", method, tuple(METHODS))
    bits = weight_bits, act_bits, softmax_bits, split, symmetric, symmetric_weights
    if policy is None:
        policy = _policy(method, *bits)
    elif not isinstance(policy, QuantPolicy):
        raise TypeError(f"policy must be a QuantPolicy, not {policy!r}")
    elif bits != BITS:
        raise ValueError("policy replaces the bits, split, symmetric and symmetric_weights: leave those out")
    iterations = whole("iterations", iterations, 1)
    act_iterations = max(1, iterations // 4) if act_iterations is None else whole("act_iterations", act_iterations, 1)
    rounding = rounding_schedule(iterations, lr)
    check_number("lr", rounding.lr, *RATES)
    check_number("act_lr", act_lr, *RATES)
    settings = learning(
        method,
        whole("batch_size", batch_size, 1),
        rounding,
        Schedule(act_iterations, act_lr) if policy.act else None,
        seed=pipeline.sampling.seed,
        correct_bias=correct_bias,
    )
    timesteps = min(whole("timesteps", timesteps, 1), pipeline.nfe)
    source = DataSettings(timesteps, samples, None if data is None else as_path("data", data))
    memory = None if memory_bytes is None else whole("memory_bytes", memory_bytes, 0)
    job = Calibrate(
        policy,
        settings,
        source,
        memory,
        spectrum_images=whole("spectrum_images", spectrum_images, 0),
        act_groups=whole("act_groups", act_groups, 1, timesteps),
        keep8=_known_layers(pipeline, keep8),
        devices=whole("devices", devices, 1),
        mixed=mixed_precision_of(policy, mixed_precision, bops_budget, snr_ratio),
    )
    job.check(pipeline)
    unquantized = pipeline.with_network(share_parameters(pipeline.network))
    kept = None if folder is None else as_path("folder", folder)
    with tempfile.TemporaryDirectory() if kept is None else nullcontext(kept) as name:
        place = Path(name)
        with explaining(place, "folder=..."):
            place.mkdir(parents=True, exist_ok=True)
            return pipeline.with_network(job.run(unquantized, place, progress=progress))


def _policy(
    method: str,
    weight_bits: int,
    act_bits: int | None,
    softmax_bits: int,
    split: bool,
    symmetric: bool,
    symmetric_weights: bool,
) -> QuantPolicy:
    """Return `uniform_policy`, with checked arguments."""
    if act_bits is None and symmetric:
        raise ValueError("symmetric needs act_bits: give the bits of activations, or leave it out")
    return uniform_policy(
        method,
        whole("weight_bits", weight_bits, 2, 8),
        None if act_bits is None else whole("act_bits", act_bits, 2, 16),
        whole("softmax_bits", softmax_bits, 2, 16),
        split=split,
        symmetric=symmetric,
        symmetric_weights=symmetric_weights,
    )


def _known_layers(pipeline: Pipeline, names: Sequence[str]) -> tuple[str, ...]:
    """Return names of `Adapter.sensitive` layers, checked."""
    names = (names,) if isinstance(names, str) else tuple(names)
    for name in names:
        check_choice("keep8", name, tuple(adapter_for(pipeline.network).sensitive))
    return names
