"""The sensitivity spectrum of a pipeline's sampling, measured once and kept in a folder."""

from pathlib import Path

import torch
from tqdm.auto import tqdm

from qdiff.calibration.sensitivity import measure_spectrum, perturbed_calls
from qdiff.files.journal import Journal
from qdiff.pipelines.pipeline import Pipeline
from qdiff.spectrum import Spectrum


def spectrum_of(pipeline: Pipeline, images: int, folder: Path, weights: str, progress: bool | None) -> Spectrum:
    """Measure the spectrum, or read what an earlier run in this folder measured.

    Args:
        pipeline: in full precision, loaded.
        images: number of images, >= 1.
        folder: keeps the measurements.
        weights: digest of the network's weights.
        progress: show a progress bar; None shows it on a terminal.
    """
    seed = pipeline.sampling.seed
    journal = Journal(folder / "sensitivity", {"weights": weights, "sampler": str(pipeline), "images": images})
    hidden = None if progress is None else not progress
    total = images * perturbed_calls(pipeline.nfe)
    with tqdm(total=total, unit="call", desc="measuring sensitivity", disable=hidden) as bar:
        return measure_spectrum(
            pipeline.calibration_steps,
            pipeline.nfe,
            images,
            journal,
            lambda call: torch.Generator().manual_seed((seed << 16) + call),
            bar.update,
        )
