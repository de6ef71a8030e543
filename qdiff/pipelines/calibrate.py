"""Calibration of a pipeline's network: collect data from its own sampling, calibrate, save; resumable."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from qdiff.adapters import adapter_for
from qdiff.calibration.data import CalibrationSet
from qdiff.calibration.job import calibrate
from qdiff.calibration.kept_steps import kept_steps
from qdiff.calibration.measure import make_plan
from qdiff.calibration.plan import Plan
from qdiff.calibration.sensitivity import perturbed_calls
from qdiff.calibration.settings import CalibrationSettings
from qdiff.checkpoints.load import load_rounding, save_quantized
from qdiff.errors import UserError
from qdiff.files.digest import file_digest, tensors_digest
from qdiff.files.journal import Journal
from qdiff.mixed_precision.choice import KEY, Choice
from qdiff.mixed_precision.criteria import MixedPrecision
from qdiff.pipelines.calibration_set import DataSettings, calibration_set
from qdiff.pipelines.device import free_memory
from qdiff.pipelines.mixed_precision import Chooser
from qdiff.pipelines.pipeline import Pipeline
from qdiff.pipelines.progress import CalibrationBar
from qdiff.pipelines.provenance import check_provenance
from qdiff.pipelines.quantization import LoadAsWritten, LoadFile, LoadQuantized
from qdiff.pipelines.sharing import share_parameters
from qdiff.pipelines.spectrum import spectrum_of
from qdiff.pipelines.workers import calibrate_shared, check_devices
from qdiff.policy import QuantPolicy
from qdiff.quant_model import QuantModel
from qdiff.spectrum import Spectrum

FILE = "quantized.safetensors"
SPECTRUM_IMAGES = 1

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Calibrate:
    """Calibrate the network.

    Args:
        policy: how each tensor is quantized.
        learning: what is learned, and for how long.
        data: source of the calibration data.
        memory_bytes: budget for captured activations; None takes half of the memory that computing leaves free.
        weights_from: quantized file whose rounding is kept, so that only activations are calibrated.
        spectrum_images: images on which the sensitivity spectrum is measured, where it is needed; 0 weighs all errors
            alike.
        act_groups: groups of consecutive sampling steps with activation ranges of their own.
        keep8: names of `Adapter.sensitive` layers that have 8 bits.
        devices: GPUs, or processes on the CPU, that share the learning; the result does not depend on them.
        mixed: fewer bits of activations for some steps, chosen before anything is calibrated; None for none.
    """

    policy: QuantPolicy
    learning: CalibrationSettings
    data: DataSettings
    memory_bytes: int | None = None
    weights_from: Path | None = None
    spectrum_images: int = SPECTRUM_IMAGES
    act_groups: int = 1
    keep8: tuple[str, ...] = ()
    devices: int = 1
    mixed: MixedPrecision | None = None

    needs_weights = True
    writes = FILE

    @property
    def collects(self) -> bool:
        """Whether calibration data are needed, and come from the model's own sampling."""
        return self._needs_data and self.data.path is None

    @property
    def _needs_data(self) -> bool:
        return self.learning.changes_blocks or self.policy.act is not None

    def check(self, pipeline: Pipeline) -> None:
        """Raise UserError for settings that do not fit.

        These are more calibration timesteps than sampling steps, more groups of steps than either, devices that
        cannot share the learning, and what `Chooser.check` refuses.
        """
        check_devices(self.devices, self.learning, pipeline.device)
        if self.collects:
            kept_steps(pipeline.nfe, self.data.timesteps)
        most = min(self.data.timesteps, len(set(pipeline.timesteps))) if self.act_groups > 1 else 1
        if self.act_groups > most:
            raise UserError(f"--act_groups {self.act_groups} exceeds the {most} steps of the data: raise --cali_st")
        if self.mixed and (chooser := self._chooser(pipeline)):
            if self.mixed.criterion.needs_spectrum and not self.spectrum_images:
                raise UserError(
                    "--bops_budget weighs errors by what they do to the image: give --cali_spectrum_n 1 or more"
                )
            chooser.check(pipeline)

    def plan(self, pipeline: Pipeline, batch_size: int) -> Plan | None:
        """Measure the calibration's time and memory; see `Quantization`."""
        model = self._starting_point(pipeline.network, self._policy(pipeline))
        if not self.learning.changes_blocks:
            return None
        example = pipeline.example(batch_size)
        samples = self._samples(pipeline)
        memory, processes = self.memory_bytes, self.devices
        plan = make_plan(model, example, samples, self.learning, memory, data_in_memory=False, processes=processes)
        return replace(plan, before=self._before(pipeline))

    def describe(self, pipeline: Pipeline, plan: Plan | None) -> Sequence[str]:
        """Name the files and show the plan."""
        lines = [f"calibrated weights: {self.weights_from}"] if self.weights_from else []
        if plan:
            source = self.data.path or f"{self.data.samples} images sampled with {pipeline.nfe} steps"
            lines += [f"calibration data: {source}", plan.table()]
        if self.mixed:
            fewer = " or ".join(map(str, self.mixed.fewer))
            lines.append(
                f"activations: {fewer} bits at the steps that are chosen after measuring, by {self.mixed.criterion}"
            )
        return lines

    def run(self, pipeline: Pipeline, folder: Path, *, progress: bool | None = None) -> QuantModel:
        """Calibrate, or load the result of this calibration if the folder has it; see `Quantization`."""
        file = folder / FILE
        weights = tensors_digest(pipeline.network.state_dict())
        policy = self._policy(pipeline)
        provenance: dict[str, object] = {
            "settings": self.learning.to_dict(),
            "policy": policy.to_dict() | ({KEY: self.mixed.to_dict()} if self.mixed else {}),
            "weights": weights,
        }
        if self.weights_from:
            provenance["cali_ckpt"] = file_digest(self.weights_from)
        if self._needs_spectrum:
            provenance["spectrum_images"] = self.spectrum_images
        if file.exists():
            log.info("calibrated before: %s", file)
            model = self.result(folder).run(pipeline, folder)
            check_provenance(file, model.provenance, provenance, "calibrate", "calibrated")
            return model
        data = calibration_set(pipeline, self.data, folder, weights, progress) if self._samples(pipeline) else None
        spectrum = None
        if self._sensitivity_calls(pipeline):
            spectrum = spectrum_of(pipeline, self.spectrum_images, folder, weights, progress)
            provenance["spectrum"] = spectrum.to_dict()
        if choice := self._choice(pipeline, data, spectrum, folder, provenance, progress):
            log.info("activations: %s", choice)
            provenance[KEY] = choice.to_dict()
            policy = policy.by_step(choice.by_timestep, self.act_groups)
        model = self._starting_point(pipeline.network, policy)
        if data:
            provenance["data"] = data.digest()
            self._calibrate(pipeline, model, data, spectrum, folder, provenance, progress)
        else:
            calibrate(model, None, self.learning)
        model.provenance = provenance
        save_quantized(file, model, config=pipeline.config_dict, provenance=provenance)
        log.info("saved %s, %.1f MB", file, file.stat().st_size / 1e6)
        model.forget_full_precision()  # sampling does not need them
        return model

    def result(self, folder: Path) -> LoadFile:
        """Return the way to load the file that this calibration writes; see `Quantization`."""
        if self.mixed:
            return LoadAsWritten(folder / FILE)  # whatever bits were chosen
        p = self.policy
        act_bit, a_sym = (p.act.bits, p.act.symmetric) if p.act else (None, False)
        return LoadQuantized(folder / FILE, p.weight.bits, act_bit, a_sym, p.split, p.softmax_bits)

    def _samples(self, pipeline: Pipeline) -> int:
        """Return the size of the calibration set; 0 if none is needed."""
        return self.data.timesteps * self.data.samples * pipeline.cfg_copies if self._needs_data else 0

    @property
    def _needs_spectrum(self) -> bool:
        return self.learning.weighs_errors or bool(self.mixed and self.mixed.criterion.needs_spectrum)

    def _sensitivity_calls(self, pipeline: Pipeline) -> int:
        """Return the network calls, of one image each, that measuring the spectrum takes; 0 if none is needed."""
        return self.spectrum_images * perturbed_calls(pipeline.nfe) if self._needs_spectrum else 0

    def _before(self, pipeline: Pipeline) -> dict[str, int]:
        """Return what is measured before, for the plan."""
        calls = self._sensitivity_calls(pipeline)
        found = {"sensitivity spectrum": calls} if calls else {}
        chooser = self._chooser(pipeline)
        return found | ({chooser.what: chooser.calls(pipeline)} if chooser else {})

    def _chooser(self, pipeline: Pipeline) -> Chooser | None:
        return Chooser(self.mixed, self._policy(pipeline), self.learning, self.data) if self.mixed else None

    def _choice(
        self,
        pipeline: Pipeline,
        data: CalibrationSet | None,
        spectrum: Spectrum | None,
        folder: Path,
        job: Mapping[str, object],
        progress: bool | None,
    ) -> Choice | None:
        """Choose the bits of each step; None where all have the same."""
        chooser = self._chooser(pipeline)
        if chooser is None or data is None:
            return None
        network = share_parameters(pipeline.network)
        model = self._starting_point(network, chooser.policy.without_activations())
        return chooser.choose(pipeline, model, data, spectrum, folder, job, progress)

    def _policy(self, pipeline: Pipeline) -> QuantPolicy:
        """Return the policy, with groups of steps and layers of 8 bits."""
        policy = adapter_for(pipeline.network).with_8_bits(self.policy, self.keep8)
        return policy.grouped(pipeline.timesteps, self.act_groups) if self.act_groups > 1 else policy

    def _starting_point(self, network: nn.Module, policy: QuantPolicy) -> QuantModel:
        """Return the model before calibration: weights rounded to nearest, or those of `weights_from`."""
        if self.weights_from:
            return load_rounding(network, self.weights_from, policy).eval()
        return QuantModel(network, policy, adapter_for(network)).eval()

    def _calibrate(
        self,
        pipeline: Pipeline,
        model: QuantModel,
        data: CalibrationSet,
        spectrum: Spectrum | None,
        folder: Path,
        job: Mapping,
        progress: bool | None,
    ) -> None:
        journal = Journal(folder / "journal", job)
        example = pipeline.example(self.learning.batch_size)
        plan = make_plan(model, example, len(data), self.learning, self.memory_bytes, processes=self.devices)
        log.info("plan\n%s", plan.table())
        plan.check(folder, free_memory(pipeline.device))
        with CalibrationBar(plan, progress if plan.units else False) as bar:
            if self.devices > 1:
                learned = replace(self.learning, correct_bias=False)  # which is not shared
                calibrate_shared(self.devices, model, data, learned, journal, memory=plan.budget, reporter=bar)
            reporter = bar if self.devices == 1 else None  # else it has seen all, and only results are taken here
            calibrate(model, data, self.learning, journal, spectrum=spectrum, memory=plan.budget, reporter=reporter)
