"""The whole job: weights block by block, activation ranges, step sizes block by block; journaled, so it resumes."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from qdiff.block_recon import LearnedRounding, LearnedSteps, Objective, Outcome, Schedule, block_reconstruction
from qdiff.calibration.capture import Store, capture
from qdiff.calibration.data import CalibrationSet
from qdiff.calibration.prefix_cache import PrefixCache
from qdiff.errors import UserError
from qdiff.files.journal import Journal
from qdiff.observers import Observer, RunningObserver
from qdiff.quant_block import ActSite, QuantBlock
from qdiff.quant_model import QuantModel, quantizer_from


@dataclass(frozen=True)
class CalibrationSettings:
    """How a network is calibrated; the paper's values are the defaults of the command line.

    Args:
        batch_size: samples per forward and per iteration.
        rounding: schedule of learned rounding; None keeps the weights as they are.
        steps: schedule of learned activation steps; None keeps the ranges that were found.
        p: exponent of the step-size loss.
        range_samples: samples on which activation ranges are searched, all of them in one forward.
        running_stat: activation ranges from averages over all data instead of a search on a part of them.
        rs_sm_only: with `running_stat`: only those of attention after its softmax.
        seed: of everything that is drawn.
    """

    batch_size: int
    rounding: Schedule | None
    steps: Schedule | None
    p: float = 2.4
    range_samples: int = 256
    running_stat: bool = False
    rs_sm_only: bool = False
    seed: int = 0

    def forward_samples(self, act: bool) -> int:
        """Samples in the largest forward of the network, with activations to quantize or without."""
        searched = self.range_samples if act and (self.rs_sm_only or not self.running_stat) else 0
        return max(self.batch_size, searched)


class Reporter:
    """What calibration tells about its progress; this one keeps quiet."""

    def start(self, block: str, stage: str) -> None:
        """A block is taken up."""

    def advance(self, iterations: int) -> None:
        """Iterations of the current block are done."""

    def finish(self, block: str, stage: str, outcome: Outcome, resumed: bool) -> None:
        """A block is done, or was found done."""


def calibrate(
    model: QuantModel,
    data: CalibrationSet,
    settings: CalibrationSettings,
    journal: Journal,
    *,
    memory: int,
    reporter: Reporter | None = None,
) -> None:
    """Calibrate `model` in place.

    Args:
        model: rounded to nearest (or with the weights of a calibrated file), FP weights still there.
        data: inputs of the network.
        settings: what to learn and how long.
        journal: finished blocks; those that it holds are taken from it.
        memory: bytes for captured activations; a block's that exceed them go to files beside the journal, and where
            there is room, outputs of finished blocks are kept.
        reporter: is told of the progress.

    Raises:
        UserError: a loss is not finite.
    """
    model.eval()
    job = _Job(model, data, settings, journal, memory, reporter or Reporter())
    blocks = dict(enumerate(model.blocks()))
    if settings.rounding:
        job.learn("weights", blocks, LearnedRounding, settings.rounding)
    if model.policy.act:
        job.find_ranges()
        if settings.steps:
            stepping = {i: b for i, b in blocks.items() if any(site.spec.step_is_learned for site in b.sites)}
            job.learn("steps", stepping, partial(LearnedSteps, p=settings.p), settings.steps)


@dataclass(frozen=True)
class _Job:
    model: QuantModel
    data: CalibrationSet
    settings: CalibrationSettings
    journal: Journal
    memory: int
    reporter: Reporter

    def learn(
        self, stage: str, blocks: Mapping[int, QuantBlock], make: Callable[[QuantBlock], Objective], schedule: Schedule
    ) -> None:
        """A stage of the job: the blocks by their numbers, one after the other."""
        modules = [block.module for block in blocks.values()]
        cache = PrefixCache(self.model, modules, self.data, self.settings.batch_size, self.memory)
        for i, block in blocks.items():
            self.reporter.start(block.path, stage)
            unit, objective = f"{stage}-{i:03d}", make(block)
            found = self.journal.read(unit)
            if found:
                tensors, info = found
                objective.load(tensors)
                outcome = Outcome(**info)
            else:
                outcome = self._reconstruct(unit, block, objective, schedule, cache)
                self.journal.write(unit, objective.state(), {"before": outcome.before, "after": outcome.after})
            cache.mark_done(block.module)
            self.reporter.finish(block.path, stage, outcome, resumed=found is not None)

    def _reconstruct(
        self, unit: str, block: QuantBlock, objective: Objective, schedule: Schedule, cache: PrefixCache
    ) -> Outcome:
        captured = capture(cache, block.module, Store(self.memory - cache.max_bytes, self.journal.folder))
        generator, size = self._generator(unit), self.settings.batch_size
        return block_reconstruction(block, captured, objective, schedule, size, generator, self.reporter.advance)

    def find_ranges(self) -> None:
        """Give every activation its range, in the order of the network."""
        sites, device = self.model.sites(), next(self.model.parameters()).device
        found = self.journal.read("ranges")
        if found:
            for site in sites:
                site.set(quantizer_from(found[0], f"{site.path}.{site.name}", site.spec, site.split).to(device))
            return
        s = self.settings
        running = [site for site in sites if s.running_stat and (site.is_softmax or not s.rs_sm_only)]
        if len(running) < len(sites):
            self._observe(sites, Observer, s.range_samples, s.range_samples)
        # Drawn, because running averages over data in the order of the timesteps would know the last ones alone.
        self._observe(running, RunningObserver, len(self.data), s.batch_size)
        state = self.model.state_dict()
        names = tuple(f"{site.path}.{site.name}." for site in sites)
        self.journal.write("ranges", {key: x for key, x in state.items() if key.startswith(names)})

    def _observe(self, sites: list[ActSite], observer: type[Observer], samples: int, batch_size: int) -> None:
        """Give these activations the ranges that an observer finds in that many samples."""
        if not sites:
            return
        device = next(self.model.parameters()).device
        try:
            with self.model.observing(observer, sites):
                for inputs in self.data.drawn(samples, self._generator("ranges"), batch_size):
                    inputs.to(device)(self.model)
        except ValueError as error:
            raise UserError(
                f"cannot find the ranges of the activations ({error}): check the weights and --cali_data_path for "
                "values that overflow"
            ) from error

    def _generator(self, unit: str) -> torch.Generator:
        """Every unit has its own stream, so a resumed job draws what an undisturbed one draws."""
        digest = hashlib.sha256(f"{self.settings.seed}/{unit}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
