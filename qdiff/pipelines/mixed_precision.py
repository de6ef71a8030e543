"""Bits of activations by sampling step: chosen before the calibration, which then has the policy that it works with.

What a width does to the predictions hardly depends on the rounding of the weights (docs/mixed_precision.md), so weights
that will be learned or solved, for which activations must be known, are rounded by SQuant here, without data.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from diffusion.checks import check_choice, check_number, whole
from diffusion.dpm_plan import VPSchedule
from qdiff.adapters import adapter_for
from qdiff.calibration.data import CalibrationSet
from qdiff.calibration.job import calibrate
from qdiff.calibration.measure import make_plan
from qdiff.calibration.settings import CalibrationSettings
from qdiff.errors import UserError
from qdiff.evaluation.bops import empty_model, network_bops, without_values
from qdiff.files.journal import Journal
from qdiff.mixed_precision.choice import Choice
from qdiff.mixed_precision.criteria import RATIOS, BopsBudget, MixedPrecision, SignalToNoise
from qdiff.mixed_precision.measurement import Measurement
from qdiff.mixed_precision.widths import Widths, of_width
from qdiff.pipelines.calibration_set import DataSettings
from qdiff.pipelines.device import free_memory
from qdiff.pipelines.pipeline import Pipeline
from qdiff.policy import QuantPolicy
from qdiff.quant_model import QuantModel
from qdiff.spectrum import Spectrum

MOST_IMAGES = 8  # on whose trajectories errors are measured; the ratios of norms change little with more


@dataclass(frozen=True)
class Chooser:
    """Chooses the bits of each step.

    Args:
        mixed: which bits, and by which criterion.
        policy: with the most bits at all steps.
        learning: settings of the calibration that follows.
        data: of that calibration.
    """

    mixed: MixedPrecision
    policy: QuantPolicy
    learning: CalibrationSettings
    data: DataSettings

    @property
    def policies(self) -> dict[int, QuantPolicy]:
        """The policy of each width at all steps, by bits, ascending."""
        most = self.policy.act.bits if self.policy.act else 0
        return {bits: of_width(self.policy, bits) for bits in (*self.mixed.fewer, most)}

    @property
    def images(self) -> int:
        """Images on whose trajectories errors are measured."""
        return min(self.data.samples, MOST_IMAGES)

    @property
    def what(self) -> str:
        """What is measured, for the plan."""
        return f"errors of activations with {', '.join(map(str, self.policies))} bits"

    def calls(self, pipeline: Pipeline) -> int:
        """Return the network calls, of one image each, that measuring takes."""
        return self.images * pipeline.nfe * (1 + len(self.policies))

    def check(self, pipeline: Pipeline) -> None:
        """Raise UserError for data that lack steps of the sampler, or a budget that the fewest bits exceed."""
        d = self.data
        if d.path is None and d.timesteps * d.samples < pipeline.nfe:
            raise UserError(
                f"--mixed_precision needs samples of all {pipeline.nfe} steps, --cali_st {d.timesteps} and --cali_n "
                f"{d.samples} take {d.timesteps * d.samples}: raise one of them"
            )
        if isinstance(self.mixed.criterion, BopsBudget):
            self.mixed.criterion.check(call_bops(pipeline, self.policy, [*self.policies]))

    def choose(
        self,
        pipeline: Pipeline,
        model: QuantModel,
        data: CalibrationSet,
        spectrum: Spectrum | None,
        folder: Path,
        job: Mapping[str, object],
        progress: bool | None,
    ) -> Choice:
        """Measure the errors of the widths, or read what an earlier run in this folder measured, and choose.

        Args:
            pipeline: in full precision, loaded.
            model: its network as the calibration starts from it, without quantized activations; changed.
            data: inputs of the network.
            spectrum: what errors do to the image, if the criterion needs it.
            folder: keeps the measurements.
            job: what they depend on.
            progress: show a progress bar; None shows it on a terminal.

        Raises:
            UserError: too little memory, an activation is not finite, a group of steps has no samples, or a budget that
                the fewest bits exceed.
        """
        rules = model.policy.weight_rules  # those of a file whose rounding is kept
        widths = Widths(model, {bits: replace(policy, weight_rules=rules) for bits, policy in self.policies.items()})
        settings = self._stand_in
        calibrate(model, None, settings)
        measured = self._measured(pipeline, widths, data, folder / "mixed_precision", job, progress)
        return Choice.by(self.mixed.criterion, measured, spectrum)

    @property
    def _stand_in(self) -> CalibrationSettings:
        """The settings with weights that no data are needed for."""
        fitted = bool(self.learning.rounding or self.learning.closed_form)
        rounded = replace(self.learning, rounding=None, steps=None, closed_form=None, correct_bias=False)
        return replace(rounded, squant=rounded.squant or fitted)

    def _measured(
        self,
        pipeline: Pipeline,
        widths: Widths,
        data: CalibrationSet,
        folder: Path,
        job: Mapping[str, object],
        progress: bool | None,
    ) -> Measurement:
        job = {**job, "sampler": str(pipeline), "data": data.digest(), "widths": [*widths.policies]}
        journal = Journal(folder, {**job, "images": self.images})
        batches = torch.arange(self.images).split(pipeline.batch_size)
        if any(journal.read(_unit(batch)) is None for batch in batches):
            self._find_ranges(pipeline, widths, data, folder, job)
        hidden = None if progress is None else not progress
        with tqdm(total=self.calls(pipeline), unit="call", desc=f"measuring {self.what}", disable=hidden) as bar:
            parts = [_errors(pipeline, widths, batch, journal, bar) for batch in batches]
        signal, errors = (torch.stack([part[name] for part in parts]).sum(0) for name in ("signal", "errors"))
        t = parts[0]["t"]
        return Measurement.of_calls(
            t.tolist(),
            VPSchedule(pipeline.abar).lam(t).mul(2).exp().tolist(),
            signal.tolist(),
            dict(zip(widths.policies, errors.transpose(0, 1).tolist())),
            call_bops(pipeline, widths.policies[max(widths.policies)], [*widths.policies]),
            self.images,
        )

    def _find_ranges(
        self, pipeline: Pipeline, widths: Widths, data: CalibrationSet, folder: Path, job: Mapping[str, object]
    ) -> None:
        settings, example = self._stand_in, pipeline.example(self.learning.batch_size)
        widths.model.policy = self.policy
        make_plan(widths.model, example, len(data), settings, None).check(folder, free_memory(pipeline.device))
        widths.find(data, settings, lambda bits: Journal(folder / f"a{bits}", job))


def _errors(pipeline: Pipeline, widths: Widths, batch: Tensor, journal: Journal, bar: tqdm) -> Mapping[str, Tensor]:
    """Return what `Widths.errors` measures on the trajectories of some calibration images."""
    images, calls = batch.tolist(), len(batch) * (1 + len(widths.policies))
    if recorded := journal.read(_unit(batch)):
        bar.update(calls * pipeline.nfe)
        return recorded[0]
    predict = pipeline.with_network(widths.model).calibration_model_for(images)
    found = widths.errors(pipeline.calibration_steps(images), predict, partial(bar.update, calls))
    journal.write(_unit(batch), found)
    return found


def _unit(batch: Tensor) -> str:
    return f"images-{batch[0]:06d}-{batch[-1] + 1:06d}"


def call_bops(pipeline: Pipeline, policy: QuantPolicy, widths: Sequence[int]) -> dict[int, int]:
    """Return the bit operations of a network call for one image, by bits of activations, without computing it.

    Args:
        pipeline: in full precision.
        policy: of everything else.
        widths: the bits.
    """
    phases = policy.by_step(dict(enumerate(widths)), len(widths))  # one for each, so that calls are counted once
    model = empty_model(without_values(pipeline.network), phases, adapter_for(pipeline.network))
    cost = network_bops(model, pipeline.example(1))
    return {bits: pipeline.cfg_copies * cost.bops(phase) for phase, bits in enumerate(widths)}


def mixed_precision_of(
    policy: QuantPolicy, fewer: int | Sequence[int], budget: float | None, ratio: str
) -> MixedPrecision | None:
    """Return what the arguments of `quantize` ask for; None if `fewer` is empty.

    Args:
        policy: with the most bits at all steps.
        fewer: bits that steps may have instead.
        budget: share of the bit operations, for `BopsBudget`; None takes `SignalToNoise` with this ratio.
        ratio: "norm" or "power".

    Raises:
        TypeError, ValueError: bits that are not whole, not fewer or less than 2, a policy with phases or without
            activations, or a budget or a ratio of another type, out of range, or without bits.
    """
    fewer = (fewer,) if isinstance(fewer, int) else tuple(fewer)
    check_choice("snr_ratio", ratio, RATIOS)
    if budget is not None:
        check_number("bops_budget", budget, 0, 1)
    if not fewer and (budget is not None or ratio != "norm"):
        raise ValueError("bops_budget and snr_ratio need mixed_precision: give the bits that steps may have")
    if not fewer:
        return None
    if policy.act is None:
        raise ValueError("mixed_precision needs act_bits, the most bits of a step")
    if policy.act_phases:
        raise ValueError("mixed_precision chooses the phases of the policy: leave out its act_phases")
    if policy.act.bits == 2:
        raise ValueError("mixed_precision needs bits fewer than act_bits, and 2 are the fewest")
    if budget is not None and ratio != "norm":
        raise ValueError("snr_ratio belongs to the criterion without bops_budget: leave one of them out")
    bits = {whole("mixed_precision", x, 2, policy.act.bits - 1) for x in fewer}
    return MixedPrecision(tuple(sorted(bits)), SignalToNoise(ratio) if budget is None else BopsBudget(budget))
