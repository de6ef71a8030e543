"""Calibration of a pipeline's network: collect data from its own sampling, calibrate, save; resumable."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm.auto import tqdm

from qdiff.adapters import adapter_for
from qdiff.calibration.collect import collect
from qdiff.calibration.data import CalibrationSet, kept_steps, read_calibration_data
from qdiff.calibration.job import CalibrationSettings, calibrate
from qdiff.calibration.measure import make_plan
from qdiff.calibration.plan import Plan
from qdiff.checkpoints.load import load_rounding, save_quantized
from qdiff.errors import UserError
from qdiff.files.digest import file_digest, tensors_digest
from qdiff.files.journal import Journal
from qdiff.pipelines.device import free_memory
from qdiff.pipelines.pipeline import Pipeline
from qdiff.pipelines.progress import CalibrationBar
from qdiff.pipelines.quantization import LoadQuantized
from qdiff.policy import QuantPolicy
from qdiff.quant_model import QuantModel

CHECKED = 64  # samples checked for finite values at a time, because a check takes as much memory as they do
FILE = "quantized.safetensors"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataSettings:
    """Where calibration data come from.

    Args:
        timesteps: sampling steps whose inputs of the network are kept, spread over the trajectory.
        samples: images, each of which gives a sample at each of these steps.
        path: file of data that were collected before; None collects them.
    """

    timesteps: int
    samples: int
    path: Path | None = None


@dataclass(frozen=True)
class Calibrate:
    """Calibrate the network.

    Args:
        policy: how each tensor is quantized.
        learning: what is learned, and how long.
        data: calibration data.
        memory_bytes: for captured activations; None takes half of what computing leaves free.
        weights_from: quantized file whose rounding is kept, so that only activations are calibrated.
    """

    policy: QuantPolicy
    learning: CalibrationSettings
    data: DataSettings
    memory_bytes: int | None = None
    weights_from: Path | None = None

    needs_weights = True

    @property
    def collects(self) -> bool:
        """Whether calibration data come from the model's own sampling."""
        return self.data.path is None

    def check(self, pipeline: Pipeline) -> None:
        """Raise UserError for more calibration timesteps than sampling steps."""
        if self.collects:
            kept_steps(pipeline.nfe, self.data.timesteps)

    def plan(self, pipeline: Pipeline, batch_size: int) -> Plan | None:
        """Measure what the calibration takes; see `Quantization`."""
        model = self._starting_point(pipeline)
        if not (self.learning.rounding or self.learning.steps):
            return None
        example = pipeline.example(batch_size)
        samples = self._samples(pipeline)
        return make_plan(model, example, samples, self.learning, self.memory_bytes, data_in_memory=False)

    def describe(self, pipeline: Pipeline, plan: Plan | None) -> Sequence[str]:
        """Name the files and show the plan."""
        lines = [f"calibrated weights: {self.weights_from}"] if self.weights_from else []
        if plan:
            source = self.data.path or f"{self.data.samples} images sampled with {pipeline.nfe} steps"
            lines += [f"calibration data: {source}", plan.table()]
        return lines

    def run(self, pipeline: Pipeline, folder: Path, *, progress: bool | None = None) -> QuantModel:
        """Calibrate, or load what was calibrated in this folder before; see `Quantization`."""
        file = folder / FILE
        if file.exists():
            log.info("calibrated before: %s", file)
            return self.finished(file).run(pipeline, folder)
        weights = tensors_digest(pipeline.network.state_dict())
        data = self._data(pipeline, folder, weights, progress) if self._samples(pipeline) else None
        model = self._starting_point(pipeline)
        provenance = {"settings": asdict(self.learning), "policy": self.policy.to_dict(), "weights": weights}
        if self.weights_from:
            provenance["cali_ckpt"] = file_digest(self.weights_from)
        if data:
            provenance["data"] = data.digest()
            self._calibrate(pipeline, model, data, folder, provenance, progress)
        model.provenance = provenance
        save_quantized(file, model, config=pipeline.config_dict, provenance=provenance)
        log.info("saved %s, %.1f MB", file, file.stat().st_size / 1e6)
        model.forget_full_precision()  # sampling does without
        return model

    def finished(self, path: Path) -> LoadQuantized:
        """Return how to load the file that this calibration writes."""
        p = self.policy
        act_bit, a_sym = (p.act.bits, p.act.symmetric) if p.act else (None, False)
        return LoadQuantized(path, p.weight.bits, act_bit, a_sym, p.split, p.softmax_bits)

    def _samples(self, pipeline: Pipeline) -> int:
        """Return the size of the calibration set; 0 if none is needed."""
        needed = self.learning.rounding or self.policy.act
        return self.data.timesteps * self.data.samples * pipeline.cfg_copies if needed else 0

    def _starting_point(self, pipeline: Pipeline) -> QuantModel:
        """Return what calibration starts from: weights rounded to nearest, or those of `weights_from`."""
        network = pipeline.network
        if self.weights_from:
            return load_rounding(network, self.weights_from, self.policy).eval()
        return QuantModel(network, self.policy, adapter_for(network)).eval()

    def _data(self, pipeline: Pipeline, folder: Path, weights: str, progress: bool | None) -> CalibrationSet:
        """Return the given data, those of an earlier run in this folder, or new ones from the model's trajectory."""
        own, journal, d = folder / "calibration_data.safetensors", folder / "collecting", self.data
        example = pipeline.example(1)
        if d.path is None and not own.exists():
            data = self._collect(pipeline, Journal(journal, {"weights": weights}), progress)
            _check(data, example, "the network's own sampling")
            data.save(own)
        else:
            source, conditions = d.path or own, len(example) > 2
            data = read_calibration_data(source, d.timesteps, d.samples, pipeline.cfg_copies, conditions=conditions)
            _check(data, example, f"'{source}'")
        if own.exists():  # also after a kill between saving and this
            shutil.rmtree(journal, ignore_errors=True)
        return data

    def _collect(self, pipeline: Pipeline, journal: Journal, progress: bool | None) -> CalibrationSet:
        d = self.data
        total = d.samples * (kept_steps(pipeline.nfe, d.timesteps)[-1] + 1)
        hidden = None if progress is None else not progress
        with tqdm(total=total, unit="step", desc="collecting calibration data", disable=hidden) as bar:
            return collect(
                pipeline.network,
                pipeline.calibration_steps,
                steps=pipeline.nfe,
                cali_st=d.timesteps,
                cali_n=d.samples,
                batch_size=pipeline.batch_size,
                journal=journal,
                progress=bar.update,
                rows=pipeline.cfg_copies,
            )

    def _calibrate(
        self,
        pipeline: Pipeline,
        model: QuantModel,
        data: CalibrationSet,
        folder: Path,
        job: Mapping,
        progress: bool | None,
    ) -> None:
        journal = Journal(folder / "journal", job)
        example = pipeline.example(self.learning.batch_size)
        plan = make_plan(model, example, len(data), self.learning, self.memory_bytes)
        log.info("plan\n%s", plan.table())
        plan.check(folder, free_memory(pipeline.device))
        with CalibrationBar(plan, progress if plan.units else False) as bar:
            calibrate(model, data, self.learning, journal, memory=plan.budget, reporter=bar)


def _check(data: CalibrationSet, example: Sequence[torch.Tensor], source: str) -> None:
    """Check that data fit the network and are finite. Raises UserError."""
    have, want = ([tuple(x.shape[1:]) for x in inputs] for inputs in (data.inputs, example))
    if have != want:
        raise UserError(
            f"calibration data from {source} have the shapes {have}, the network takes {want}: give data of this "
            "network, or leave out --cali_data_path"
        )
    if not all(torch.isfinite(x).all() for batch in data.batches(CHECKED) for x in batch):
        raise UserError(
            f"calibration data from {source} are not finite: check the weights, or give other data with "
            "--cali_data_path"
        )
