"""The calibration set of a pipeline: read, or collected from its own sampling."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm.auto import tqdm

from diffusion.checks import whole
from qdiff.calibration.collect import collect, collecting_calls
from qdiff.calibration.data import CalibrationSet, read_calibration_data
from qdiff.calls import Call
from qdiff.errors import UserError
from qdiff.files.journal import Journal
from qdiff.pipelines.pipeline import Pipeline
from qdiff.sampling.run_folder import CALIBRATION_DATA

CHECKED = 64  # samples checked for finite values at a time, because a check takes as much memory as they do


@dataclass(frozen=True)
class DataSettings:
    """The source of calibration data.

    Args:
        timesteps: number of sampling steps of each image, spread over its trajectory, at which the network's inputs are
            kept; >= 1.
        samples: number of images, each at steps of its own, see `kept_steps`; >= 1.
        path: file of calibration data; None collects them.

    Raises:
        TypeError, ValueError: not a whole number, or less than 1.
    """

    timesteps: int
    samples: int
    path: Path | None = None

    def __post_init__(self) -> None:
        for name in ("timesteps", "samples"):
            object.__setattr__(self, name, whole(name, getattr(self, name), 1))


def calibration_set(
    pipeline: Pipeline, settings: DataSettings, folder: Path, weights: str, progress: bool | None
) -> CalibrationSet:
    """Read the data of `settings`, reuse those of an earlier run in this folder, or collect them by sampling.

    Args:
        pipeline: in full precision, loaded.
        settings: the source of the data.
        folder: keeps collected data, and those of a collection that is interrupted.
        weights: digest of the network's weights.
        progress: show a progress bar; None shows it on a terminal.

    Raises:
        UserError: the data do not fit the network or are not finite.
    """
    own, journal, s = folder / CALIBRATION_DATA, folder / "collecting", settings
    example = pipeline.example(1)
    if s.path is None and not own.exists():
        data = _collected(pipeline, settings, Journal(journal, {"weights": weights}), progress)
        _check(data, example, "the network's own sampling")
        data.save(own)
    else:
        source, conditions = s.path or own, len(example.tensors) > 2
        data = read_calibration_data(source, s.timesteps, s.samples, pipeline.cfg_copies, conditions=conditions)
        _check(data, example, f"'{source}'")
    if own.exists():  # also after a kill between saving and this
        shutil.rmtree(journal, ignore_errors=True)
    return data


def _collected(pipeline: Pipeline, settings: DataSettings, journal: Journal, progress: bool | None) -> CalibrationSet:
    total = collecting_calls(pipeline.nfe, settings.timesteps, settings.samples, pipeline.batch_size)
    hidden = None if progress is None else not progress
    with tqdm(total=total, unit="step", desc="collecting calibration data", disable=hidden) as bar:
        return collect(
            pipeline.network,
            pipeline.calibration_steps,
            steps=pipeline.nfe,
            cali_st=settings.timesteps,
            cali_n=settings.samples,
            batch_size=pipeline.batch_size,
            journal=journal,
            progress=bar.update,
            rows=pipeline.cfg_copies,
        )


def _check(data: CalibrationSet, example: Call, source: str) -> None:
    """Check that data fit the network and are finite. Raises UserError otherwise."""
    have, want = ([tuple(x.shape[1:]) for x in call.tensors] for call in (data.call, example))
    if have != want:
        raise UserError(
            f"calibration data from {source} have the shapes {have}, the network takes {want}: give data of this "
            "network, or leave out --cali_data_path"
        )
    if not all(torch.isfinite(x).all() for batch in data.batches(CHECKED) for x in batch.tensors):
        raise UserError(
            f"calibration data from {source} are not finite: check the weights, or give other data with "
            "--cali_data_path"
        )
