"""`correct`: fit a correction for a quantized pipeline in one call."""

import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TypeVar

from qdiff.correction.parts import PARTS
from qdiff.files.refusals import explaining
from qdiff.pipelines.correction import IMAGES, FitCorrection
from qdiff.pipelines.paths import as_path
from qdiff.pipelines.pipeline import Pipeline

AnyPipeline = TypeVar("AnyPipeline", bound=Pipeline)


def correct(
    pipeline: AnyPipeline,
    full_precision: Pipeline,
    *,
    fit: str = "ptqd",
    images: int = IMAGES,
    parts: Sequence[str] = PARTS,
    folder: str | Path | None = None,
    progress: bool = False,
) -> AnyPipeline:
    """Correct what quantization does to the predicted noise (PTQD, He et al. 2023), and return the pipeline that does.

    Its `correction` tells the numbers, and which parts help; `save_correction` writes them.

    Args:
        pipeline: quantized; its sampler and settings are those that the correction is for.
        full_precision: the same model in full precision; its own sampler is not used.
        fit: "ptqd" compares predictions on trajectories of full precision, as the paper does; "trajectory" corrects the
            quantized network's own trajectory step by step, towards that of full precision.
        images: of calibration, >= 4; half of them are fitted, the others decide which parts help.
        parts: those that may be used, of "slope", "bias" and "variance".
        folder: keeps the work and the file, so that the same call resumes; None keeps nothing.
        progress: show a progress bar.

    Raises:
        TypeError: an argument has another type.
        ValueError: an argument is outside its range, or a network is not in the precision that its name says.
        UserError: a folder of another correction, or the sampler does not go with the fit.
    """
    for name, given in (("pipeline", pipeline), ("full_precision", full_precision)):
        if not isinstance(given, Pipeline):
            raise TypeError(f"{name} must be a pipeline, not {type(given).__name__}")
        given.check_loaded()
    if not pipeline.is_quantized:
        raise ValueError(
            "the pipeline is in full precision: give one that qdiff.quantize returned, or a quantized file"
        )
    if full_precision.is_quantized:
        raise ValueError("full_precision is quantized: give the pipeline that was loaded")
    parts = (parts,) if isinstance(parts, str) else tuple(parts)
    job = FitCorrection(fit, images, parts)
    reference = pipeline.with_network(full_precision.network)  # so that both sample alike
    if full_precision.config_dict != pipeline.config_dict:
        raise ValueError(f"the pipelines are of different models, {pipeline.source} and {full_precision.source}")
    kept = None if folder is None else as_path("folder", folder)
    with tempfile.TemporaryDirectory() if kept is None else nullcontext(kept) as chosen:
        place = Path(chosen)
        with explaining(place, "folder=..."):
            return job.run(pipeline.with_correction(None), reference, place, progress=progress)
