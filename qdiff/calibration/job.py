"""The whole job: weights, activation ranges, step sizes, biases; a journal makes it resumable."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
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
from qdiff.calibration.measure import make_plan
from qdiff.calibration.phases import by_phase, unmixed
from qdiff.calibration.prefix_cache import PrefixCache
from qdiff.calibration.settings import CalibrationSettings, ClosedForm
from qdiff.calibration.solve import BlockSolver, SolvedBlock
from qdiff.calls import Call
from qdiff.files.journal import Journal, temporary_journal
from qdiff.objectives import LearnedRounding, LearnedSteps, Objective
from qdiff.parallel import ALONE, Parallel
from qdiff.quant_block import QuantBlock
from qdiff.quant_model import QuantModel
from qdiff.spectrum import Spectrum
from qdiff.squant import round_layers


class Result(Protocol):
    """What a stage finds for a block, as the journal keeps it."""

    def state(self) -> dict[str, Tensor]: ...
    def load(self, state: Mapping[str, Tensor]) -> None: ...


ResultT = TypeVar("ResultT", bound=Result)


class Reporter:
    """Receives the progress of a calibration; this one ignores it."""

    def start(self, block: str, stage: str) -> None:
        """Note that a block is begun."""

    def advance(self, iterations: int) -> None:
        """Note that so many more iterations of the current block are done."""

    def finish(self, block: str, stage: str, outcome: Outcome, resumed: bool) -> None:
        """Note that a block is done; `resumed` if the journal had it."""


def calibrate(
    model: QuantModel,
    data: CalibrationSet | None,
    settings: CalibrationSettings,
    journal: Journal | None = None,
    *,
    spectrum: Spectrum | None = None,
    memory: int | None = None,
    reporter: Reporter | None = None,
    parallel: Parallel = ALONE,
) -> None:
    """Calibrate `model` in place.

    Args:
        model: rounded to nearest (or with the weights of a calibrated file), with its FP weights.
        data: inputs of the network; of every phase that its policy has, if any. None where nothing needs them: weights
            are rounded at most, and activations stay in floating point.
        settings: what to learn and for how long.
        journal: record of finished blocks, which are not learned again. Without one, what a resumed job would need is
            kept in a temporary folder and removed at the end.
        spectrum: weighs errors by what they do to the sampled image, in closed form and where biases are corrected;
            None weighs all alike.
        memory: bytes for the tensors captured of one block and the outputs of finished blocks; what exceeds them goes
            to files beside the journal. By default half of the memory that computing leaves free.
        reporter: is told of the progress.
        parallel: divides the learning among processes, each of which makes the same call; they must divide the batch
            size evenly. What is not learned, each computes for itself.

    Raises:
        UserError: a loss, or in closed form an input or output of a layer, is not finite, or a phase has no samples.
        ValueError: there are no data and something needs them; or the policy has phases, or there is a spectrum, and
            the timestep of the samples is not known; see `Adapter.timestep`.
    """
    model.eval()
    if data is None and (settings.changes_blocks or model.sites()):
        raise ValueError("ranges of activations, and whatever changes blocks, need calibration data: give `data`")
    if settings.squant:
        round_layers(model.layers().values())
    if data is None:
        return
    parts = by_phase(model, data) if model.sites() else []  # first, because learning takes long
    with nullcontext(journal) if journal else temporary_journal() as given:
        records = parallel.journal(given)
        if memory is None:
            memory = _default_memory(model, data, settings)
        _Job(model, data, settings, records, memory, reporter or Reporter(), parallel).run(parts, spectrum)


def _default_memory(model: QuantModel, data: CalibrationSet, settings: CalibrationSettings) -> int:
    if not settings.changes_blocks:
        return 0  # nothing is captured
    batch = next(unmixed(model, data)[0].batches(settings.batch_size)).to(next(model.parameters()).device)
    return make_plan(model, batch, len(data), settings, None).budget


@dataclass(frozen=True)
class _Job:
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
