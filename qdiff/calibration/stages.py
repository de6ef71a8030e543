"""The stages of a calibration: each goes through the blocks; what it finds of a block is recorded before the next."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from qdiff.block_recon import Outcome, Schedule, block_reconstruction
from qdiff.calibration.act_ranges import find_ranges
from qdiff.calibration.biases import BiasCorrector, CorrectedBiases
from qdiff.calibration.capture import Store, capture, capture_inputs
from qdiff.calibration.data import CalibrationSet
from qdiff.calibration.prefix_cache import PrefixCache
from qdiff.calibration.reporter import Reporter
from qdiff.calibration.settings import CalibrationSettings, ClosedForm
from qdiff.calibration.solve import BlockSolver, SolvedBlock
from qdiff.calls import Call
from qdiff.files.journal import Journal
from qdiff.objectives import LearnedRounding, LearnedSteps, Objective
from qdiff.parallel import Parallel
from qdiff.quant_block import QuantBlock
from qdiff.quant_model import QuantModel
from qdiff.spectrum import Spectrum


class Result(Protocol):
    """What a stage finds for a block, as the journal keeps it."""

    def state(self) -> dict[str, Tensor]: ...
    def load(self, state: Mapping[str, Tensor]) -> None: ...


ResultT = TypeVar("ResultT", bound=Result)


@dataclass(frozen=True)
class Stages:
    """The stages of one calibration.

    Args:
        model, data, settings, reporter, parallel: as for `calibrate`.
        journal: record of finished blocks.
        memory: bytes for the tensors captured of one block and the outputs of finished blocks.
    """

    model: QuantModel
    data: CalibrationSet
    settings: CalibrationSettings
    journal: Journal
    memory: int
    reporter: Reporter
    parallel: Parallel

    def run(self, parts: Sequence[CalibrationSet], spectrum: Spectrum | None) -> None:
        """Go through the stages; `parts` are the data of each phase."""
        model, settings = self.model, self.settings
        blocks = dict(enumerate(model.blocks()))
        if settings.closed_form:
            if model.sites():
                with model.unrounded():
                    find_ranges(model, parts, settings, self.journal)
            self.solve(blocks, settings.closed_form, spectrum)
        if settings.rounding:
            self.learn("weights", blocks, LearnedRounding, settings.rounding)
        if model.sites():
            if not settings.closed_form:  # which needs them earlier
                find_ranges(model, parts, settings, self.journal)
            if settings.steps:
                learned = {i: b for i, b in blocks.items() if any(site.step_is_learned for site in b.sites)}
                self.learn("steps", learned, partial(LearnedSteps, p=settings.p), settings.steps)
        if settings.correct_bias:
            self.correct(blocks, spectrum)

    def solve(self, blocks: Mapping[int, QuantBlock], settings: ClosedForm, spectrum: Spectrum | None) -> None:
        """Quantize weights in closed form, block by block in the order in which the network calls them."""
        cache = self._cache(blocks)
        solver = BlockSolver(
            self.model,
            self._bands(cache, spectrum),
            image_of(self.data.call),
            settings.columns,
            self.settings.batch_size,
        )

        def solve(unit: str, block: QuantBlock, _: SolvedBlock) -> Outcome:
            captured = capture_inputs(cache, block.module, self._store(cache))
            return solver.solve(block, captured, self.settings.generator(unit))

        self._work("solve", _as_called(blocks, cache), SolvedBlock, solve, cache)

    def correct(self, blocks: Mapping[int, QuantBlock], spectrum: Spectrum | None) -> None:
        """Correct the biases of the blocks, in the order in which the network calls them."""
        cache = self._cache(blocks)
        # of an error that is the same at all pixels, whose weights are those of all parts together
        corrector = BiasCorrector(self.model, self._bands(cache, spectrum).sum(0), self.settings.batch_size)

        def correct(unit: str, block: QuantBlock, _: CorrectedBiases) -> Outcome:
            return corrector.correct(block, capture_inputs(cache, block.module, self._store(cache)))

        self._work("biases", _as_called(blocks, cache), CorrectedBiases, correct, cache)

    def learn(
        self, stage: str, blocks: Mapping[int, QuantBlock], make: Callable[[QuantBlock], Objective], schedule: Schedule
    ) -> None:
        """Learn something of the blocks, one after the other."""
        cache = self._cache(blocks)

        def learn(unit: str, block: QuantBlock, objective: Objective) -> Outcome:
            captured = capture(cache, block.module, self._store(cache))
            generator, size = self.settings.generator(unit), self.settings.batch_size
            return block_reconstruction(
                block, captured, objective, schedule, size, generator, self.reporter.advance, self.parallel
            )

        self._work(stage, blocks, make, learn, cache)

    def _work(
        self,
        stage: str,
        blocks: Mapping[int, QuantBlock],
        make: Callable[[QuantBlock], ResultT],
        run: Callable[[str, QuantBlock, ResultT], Outcome],
        cache: PrefixCache,
    ) -> None:
        """Run a stage of the job: the blocks, given by their numbers, one after the other; the journal has the done."""
        for i, block in blocks.items():
            self.reporter.start(block.path, stage)
            unit, result = f"{stage}-{i:03d}", make(block)
            found = self.journal.read(unit)
            if found:
                tensors, info = found
                result.load(tensors)
                outcome = Outcome(**info)
            else:
                outcome = run(unit, block, result)
                self.journal.write(unit, result.state(), {"before": outcome.before, "after": outcome.after})
            cache.mark_done(block.module)
            self.reporter.finish(block.path, stage, outcome, resumed=found is not None)

    def _cache(self, blocks: Mapping[int, QuantBlock]) -> PrefixCache:
        modules = [block.module for block in blocks.values()]
        return PrefixCache(self.model, modules, self.data, self.settings.batch_size, self.memory)

    def _store(self, cache: PrefixCache) -> Store:
        return Store(self.memory - cache.max_bytes, self.journal.folder)

    def _bands(self, cache: PrefixCache, spectrum: Spectrum | None) -> Tensor:
        """Return the weights of the samples' errors, (3, N), see `Spectrum.bands`."""
        if spectrum is None:
            return Spectrum.uniform().bands(torch.zeros(len(self.data)))
        return spectrum.softened().bands(torch.cat([self._timesteps(part) for part in cache.parts]))

    def _timesteps(self, data: CalibrationSet) -> Tensor:
        """Return the timestep of each sample, (N,)."""
        t = torch.as_tensor(data.call(self.model.adapter.timestep))
        return t.flatten().expand(len(data))


def _as_called(blocks: Mapping[int, QuantBlock], cache: PrefixCache) -> dict[int, QuantBlock]:
    """Return the blocks in the order in which the network calls them."""
    called = [node.module for node in cache.nodes]
    return {i: blocks[i] for i in sorted(blocks, key=lambda i: called.index(blocks[i].module))}


def image_of(call: Call) -> tuple[int, int]:
    """Return height and width of a network's input: of its first argument with two dimensions after N and C."""
    return next(((x.shape[2], x.shape[3]) for x in call.tensors if x.ndim == 4), (1, 1))
