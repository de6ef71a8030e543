"""Both fits of a correction, for pipelines: the images, the networks a batch at a time, what is kept to resume."""

from collections.abc import Callable, Collection, Iterator
from itertools import count

import torch
from torch import Tensor

from diffusion.steps import Model
from qdiff.correction.moments import Moments
from qdiff.correction.predictions import fit_predictions
from qdiff.correction.steps import StepFactors, step_factors
from qdiff.correction.table import Fitted, StepCorrection
from qdiff.correction.trajectory import TrajectoryFit
from qdiff.errors import UserError
from qdiff.files.journal import Journal
from qdiff.pipelines.pipeline import Pipeline

FIRST = 10**6  # calibration images before are those that networks are calibrated on


@torch.no_grad()
def fit_correction(
    fit: str,
    samples: int,
    asked: Collection[str],
    quantized: Pipeline,
    full_precision: Pipeline,
    journal: Journal,
    progress: Callable[[int], object],
) -> Fitted:
    """Fit a correction on calibration images, half of which decide what helps.

    Args:
        fit: "ptqd" or "trajectory".
        samples: number of images.
        asked: the parts that may be used.
        quantized, full_precision: sample alike.
        journal: what is done; that of an earlier run is taken from it.
        progress: called with the number of network calls done, of one image each.

    Raises:
        UserError: as `one_step`.
    """
    images = range(FIRST, FIRST + samples)
    if fit == "ptqd":
        halves = images[: samples // 2], images[samples // 2 :]
        fitted, held_out = (_Collected(quantized, full_precision, half, journal, progress) for half in halves)
        factors = step_factors(quantized.sampling.sampler, quantized.abar)
        return fit_predictions(fitted, held_out, asked, factors, held_out.distances)
    fp, q = (_InBatches(pipeline, images, progress) for pipeline in (full_precision, quantized))
    return TrajectoryFit(
        quantized.sampling.sampler,
        quantized.abar,
        one_step(quantized),
        lambda: quantized.calibration_noise(images),
        lambda: _remembered(fp, journal, "fp"),
        lambda parts: _remembered(q, journal, "-".join(("q", *sorted(parts)))),
    ).run(asked)


def one_step(pipeline: Pipeline) -> StepFactors:
    """Return the factors of the sampler's steps. Raises UserError if a step also depends on earlier ones, or clips."""
    factors = step_factors(pipeline.sampling.sampler, pipeline.abar, clipped=True)
    if factors is None:
        raise UserError(
            "a fit on the quantized trajectory needs DDIM, where a step depends on the last prediction alone, not "
            f"{pipeline.sampling.sampler}: leave out --correct_fit trajectory, or change the sampler"
        )
    return factors


def _batches(images: range, size: int) -> list[range]:
    return [images[start : start + size] for start in range(0, len(images), size)]


class _Collected:
    """Images of a fit, a batch at a time: moments of both predictions on trajectories of full precision, and results.

    The journal keeps them.
    """

    def __init__(
        self,
        quantized: Pipeline,
        full_precision: Pipeline,
        images: range,
        journal: Journal,
        progress: Callable[[int], object],
    ):
        self.quantized, self.full_precision = quantized, full_precision
        self.batches, self.journal, self.progress = _batches(images, quantized.batch_size), journal, progress
        self.finished: set[range] = set()

    def __iter__(self) -> Iterator[Moments]:
        for batch in self.batches:
            yield self._of(batch)[0]

    def _of(self, batch: range) -> tuple[Moments, Tensor]:
        """Return the moments of a batch, and its results in full precision."""
        unit = f"trajectories-{batch.start}-{batch.stop}"
        recorded = self.journal.read(unit)
        if recorded:
            moments = Moments(recorded[0]["moments"], recorded[1]["pixels"], recorded[1]["cells"])
            results = recorded[0]["results"]
            if batch not in self.finished:
                self.progress(2 * len(batch) * self.quantized.nfe)
        else:
            moments, results = self._measured(batch)
            numbers = {"pixels": moments.pixels, "cells": moments.cells}
            self.journal.write(unit, {"moments": moments.values, "results": results}, numbers)
        self.finished.add(batch)
        return moments, results

    def _measured(self, batch: range) -> tuple[Moments, Tensor]:
        model = self.quantized.calibration_model_for(batch)
        each = []
        for step in self.full_precision.calibration_steps(batch):
            each.append(Moments.of(step.eps, step.predicted_by(model)))
            self.progress(2 * len(batch))
        return each[0].like(torch.stack([m.values for m in each], 1)), step.x_prev

    def distances(self, fitted: Fitted) -> Tensor:
        """Sample with the quantized network, corrected; return how far each result is from that of full precision.

        The mean squared distance, float64 of shape (N,).
        """
        return torch.cat([self._distances(batch, fitted) for batch in self.batches])

    def _distances(self, batch: range, fitted: Fitted) -> Tensor:
        unit = "-".join(("results", *fitted.used, str(batch.start), str(batch.stop)))
        recorded = self.journal.read(unit)
        if recorded:
            self.progress(len(batch) * self.quantized.nfe)
            return recorded[0]["distances"]
        _, wanted = self._of(batch)
        results = wanted
        correct = StepCorrection(fitted, self.quantized.timesteps)
        for step in self.quantized.calibration_steps(batch, correct):
            results = step.x_prev
            self.progress(len(batch))
        found = (results.cpu() - wanted.cpu()).double().square().flatten(1).mean(1)
        self.journal.write(unit, {"distances": found})
        return found


class _InBatches:
    """The model of many images, which the network gets a batch at a time."""

    def __init__(self, pipeline: Pipeline, images: range, progress: Callable[[int], object]):
        self.size, self.progress = pipeline.batch_size, progress
        self.models = [pipeline.calibration_model_for(batch) for batch in _batches(images, self.size)]

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        parts = []
        for model, x, times in zip(self.models, x_t.split(self.size), t.split(self.size)):
            parts.append(model(x, times))
            self.progress(len(x))
        return torch.cat(parts)


def _remembered(model: _InBatches, journal: Journal, name: str) -> Model:
    """Return the model that writes its predictions down, call by call, and takes them from there if they are known."""
    calls = count()

    def predict(x_t: Tensor, t: Tensor) -> Tensor:
        unit = f"{name}-{next(calls):04d}"
        recorded = journal.read(unit)
        if recorded:
            return recorded[0]["eps"].to(x_t)
        eps = model(x_t, t)
        journal.write(unit, {"eps": eps})
        return eps

    return predict
