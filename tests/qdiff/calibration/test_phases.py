"""Calibration by phase: data divided by timestep, ranges and step sizes of each phase from its own samples."""

import copy
import re
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qdiff.block_recon import Captured, Schedule, block_loss
from qdiff.calibration.capture import Store, capture
from qdiff.calibration.data import CalibrationSet
from qdiff.calibration.job import calibrate
from qdiff.calibration.measure import make_plan
from qdiff.calibration.phases import by_phase, unmixed
from qdiff.calibration.prefix_cache import PrefixCache
from qdiff.calibration.settings import CalibrationSettings
from qdiff.calls import Call, Samples
from qdiff.checkpoints.load import load_quantized, save_quantized
from qdiff.errors import UserError
from qdiff.files.journal import Journal
from qdiff.policy import QuantSpec
from qdiff.quant_model import QuantModel
from tests.qdiff.adapters.test_third_party import ADAPTER, network
from tests.qdiff.calibration.test_job import Killed, LastJournal, Told, saved
from tests.qdiff.loops import gaussian
from tests.qdiff.test_phases import BITS, PHASED, numbers_of

FIRSTS = (0, 10, 600)
SIZES = (7, 4, 5)  # samples of each phase
TIMES = torch.tensor([*[700, 650, 999, 600, 601], *[599, 30, 10, 12], *[9, 3, 5, 5, 0, 0, 1]])  # as while sampling
SHUFFLED = [9, 0, 5, 1, 10, 11, 2, 6, 3, 12, 7, 13, 4, 8, 14, 15]  # phases mixed, in the same order within each
SETTINGS = CalibrationSettings(3, Schedule(8, 3e-2), Schedule(30, 3e-3), seed=7)
PLENTY = 10**9


def data(times: Tensor = TIMES) -> CalibrationSet:
    x = (1 + times[:, None, None, None] / 300) * gaussian(len(times), 2, 4, 4)
    return CalibrationSet((x, times))


def fresh(**changes) -> QuantModel:
    return QuantModel(network(0), replace(PHASED, **changes), ADAPTER).eval()


class Job(NamedTuple):
    model: QuantModel
    folder: Path
    told: Told
    file: bytes

    @property
    def units(self) -> list[str]:
        return [*(f"weights-{i:03d}" for i in range(4)), "ranges", *(f"steps-{i:03d}" for i in (0, 2, 3))]

    def record(self, unit: str) -> bytes:
        return (self.folder / f"{unit}.safetensors").read_bytes()


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Job:
    """The whole job, undisturbed."""
    model, folder, told = fresh(), tmp_path_factory.mktemp("journal"), Told()
    calibrate(model, data(), SETTINGS, Journal(folder, {}), memory=PLENTY, reporter=told)
    return Job(model, folder, told, saved(model, tmp_path_factory.mktemp("file")))


# Data


@given(st.lists(st.integers(0, 999), max_size=30))
def test_every_sample_is_in_one_part_in_the_order_of_the_data(more):
    times = torch.tensor([*more, *FIRSTS])
    x = torch.arange(len(times))
    parts = by_phase(fresh(), CalibrationSet((x, times)))
    assert len(parts) == 3 and sum(map(len, parts)) == len(x)
    for phase, part in enumerate(parts):
        rows, t = part.inputs
        assert torch.equal(rows, x[torch.tensor([PHASED.phase_of(t) == phase for t in times.tolist()])])
        assert torch.equal(t, times[rows])


def test_samples_that_follow_one_another_are_not_copied():
    whole = data()
    for part in by_phase(fresh(), whole):
        assert part.inputs[0].untyped_storage().data_ptr() == whole.inputs[0].untyped_storage().data_ptr()


def test_data_are_divided_only_where_activations_are_quantized_by_phase(job):
    whole = data()
    assert by_phase(fresh(act_phases=()), whole) == [whole] == unmixed(fresh(), whole)
    assert [len(part) for part in unmixed(job.model, whole)] == [*SIZES]
    with job.model.full_precision():
        assert unmixed(job.model, whole) == [whole]


@pytest.mark.parametrize(
    ("times", "missing"),
    [([700, 3], "10..599"), ([100, 200], "0..9 and from 600 on"), ([9, 10], "from 600 on")],
)
def test_a_phase_without_samples_is_told_before_anything_is_learned(times, missing, tmp_path):
    with pytest.raises(UserError, match=re.escape(f"no sample at the timesteps {missing}, where")) as caught:
        calibrate(fresh(), data(torch.tensor(times)), SETTINGS, Journal(tmp_path, {}), memory=0)
    assert "raise --cali_st" in str(caught.value) and "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["job.json"]


def test_samples_without_a_timestep_are_an_error():
    with pytest.raises(ValueError, match=r"Adapter\(timestep=\.\.\.\)"):
        calibrate(fresh(), CalibrationSet((gaussian(3, 2, 4, 4),)), SETTINGS)


def test_without_quantized_activations_no_phase_needs_samples():
    model = fresh(act_rules=(("*", None),))
    calibrate(model, data(torch.tensor([700, 3])), CalibrationSettings(2, Schedule(1, 1e-3), None))
    assert model.sites() == [] and len(model.policy.phases) == 3


# What is drawn


def captured(phases: tuple[int, ...]) -> Captured:
    x = torch.arange(16.0)[:, None]
    return Captured(Call((x,)), Samples(x), phases)


def test_batches_are_in_one_phase_each_and_cover_all_samples():
    found = list(captured(SIZES).batches(3))
    assert found == [
        *((0, slice(0, 3)), (0, slice(3, 6)), (0, slice(6, 7))),
        *((1, slice(7, 10)), (1, slice(10, 11)), (2, slice(11, 14)), (2, slice(14, 16))),
    ]
    assert list(captured(()).batches(7)) == [(0, slice(0, 7)), (0, slice(7, 14)), (0, slice(14, 16))]


def test_phases_are_drawn_in_proportion_to_their_samples():
    generator, counts, seen = torch.Generator().manual_seed(0), [0, 0, 0], torch.zeros(16)
    starts = (0, 7, 11, 16)
    for _ in range(4000):
        phase, rows = captured(SIZES).drawn(3, generator)
        assert starts[phase] <= rows.min() and rows.max() < starts[phase + 1] and rows.shape == (3,)
        counts[phase] += 1
        seen += rows.bincount(minlength=16)
    deviations = 5 * (4000 * 0.25) ** 0.5
    assert all(abs(n - 4000 * size / 16) < deviations for n, size in zip(counts, SIZES))
    assert (seen - 750).abs().max() < 200, "every sample is as likely as any other"


def test_without_phases_the_drawn_numbers_are_those_of_randint():
    ours, theirs = (torch.Generator().manual_seed(3) for _ in range(2))
    for size in (1, 4, 9):
        phase, rows = captured(()).drawn(size, ours)
        assert phase == 0 and torch.equal(rows, torch.randint(16, (size,), generator=theirs))


# The job


def test_the_job_has_the_units_of_any_other(job):
    assert sorted(path.stem for path in job.folder.glob("*.safetensors")) == sorted(job.units)
    assert job.told.iterations == [8] * 4 + [30] * 3


def test_roundings_do_not_depend_on_phases(job, tmp_path):
    plain = fresh(act_phases=())
    with pytest.raises(Killed):
        calibrate(plain, data(), SETTINGS, LastJournal(tmp_path, 4), memory=PLENTY)
    for unit in job.units[:4]:
        assert (tmp_path / f"{unit}.safetensors").read_bytes() == job.record(unit)


@pytest.mark.parametrize("flags", [{}, {"running_stat": True}, {"running_stat": True, "rs_sm_only": True}])
def test_ranges_of_a_phase_are_those_of_a_uniform_job_on_its_samples(flags):
    """Though the phases are observed one after the other in the same network."""
    settings, model = CalibrationSettings(3, None, None, range_samples=4, **flags), fresh()
    calibrate(model, data(), settings)
    for phase, part in enumerate(by_phase(model, data())):
        alone = fresh(act=replace(PHASED.act, bits=BITS[phase]), act_phases=())
        calibrate(alone, part, settings)
        expected, mine = alone.quantized_state(), numbers_of(model.quantized_state(), phase)
        assert mine.keys() == expected.keys() and all(torch.equal(x, expected[key]) for key, x in mine.items())


def uniform(model: QuantModel, phase: int) -> QuantModel:
    policy = replace(PHASED, act=replace(PHASED.act, bits=BITS[phase]), act_phases=())
    state = numbers_of(model.state_dict(), phase)
    return QuantModel.from_state(network(0), policy, ADAPTER, state, keep_weights=True).eval()


@pytest.mark.parametrize("memory", [0, PLENTY])
def test_the_loss_of_a_block_is_the_mean_over_the_uniform_networks_of_the_phases(job, memory, tmp_path):
    """What comes to the block and what leaves it, so that every batch was computed in its own phase."""
    model, parts = job.model, by_phase(job.model, data())
    for i, block in enumerate(model.blocks()):
        cache = PrefixCache(model, [block.module], data(), 3, memory)
        found, losses = capture(cache, block.module, Store(0, tmp_path)), []
        assert found.phases == SIZES
        for phase, part in enumerate(parts):
            alone = uniform(model, phase)
            own = alone.blocks()[i]
            expected = capture(PrefixCache(alone, [own.module], part, 3, 0), own.module, Store(0, tmp_path))
            rows = slice(sum(SIZES[:phase]), sum(SIZES[: phase + 1]))
            for a, b in ((found.inputs, expected.inputs), (found.target, expected.target)):
                assert all(map(torch.equal, a[rows].tensors, b.tensors))
            losses.append(block_loss(own.module, expected, 2.4, 3) * SIZES[phase] / 16)
        assert block_loss(block.module, found, 2.4, 3) == pytest.approx(sum(losses), rel=1e-6)


def test_step_sizes_of_every_phase_are_learned(job):
    ranges, _ = Journal(job.folder, {}).read("ranges")
    learned = {
        outcome: block for outcome, (stage, block) in zip(job.told.outcomes, job.told.started) if stage == "steps"
    }
    assert any(outcome.improved for outcome in learned)
    path = next(block for outcome, block in learned.items() if outcome.improved)
    moved = {key: not torch.equal(x, ranges[key]) for key, x in job.model.state_dict().items() if key in ranges}
    for phase in range(3):
        mine = [
            m
            for key, m in moved.items()
            if key.startswith(path) and key.endswith("delta") and f"phases.{phase}." in key
        ]
        assert any(mine), f"phase {phase} of {path}"
    assert not any(m for key, m in moved.items() if key.endswith("zero_point"))


def test_in_a_phase_of_16_bits_nothing_is_learned():
    model = fresh(act=QuantSpec(16, range_search="minmax"), softmax_bits=16, act_rules=(), act_phases=((600, 4),))
    told, settings = Told(), replace(SETTINGS, rounding=None)
    calibrate(model, data(torch.tensor([700, 650, 9, 3, 5, 8])), settings, memory=0, reporter=told)
    before = fresh(**vars(model.policy))
    calibrate(before, data(torch.tensor([700, 650, 9, 3, 5, 8])), replace(settings, steps=None), memory=0)
    assert any(outcome.improved for outcome in told.outcomes) and set(told.iterations) == {30}
    changed = {key for key, x in model.state_dict().items() if not torch.equal(x, before.state_dict()[key])}
    assert changed and all("_quantizer" in key and ".phases.1." in key for key in changed if key.endswith("delta"))


def test_a_killed_job_goes_on_to_the_same_end(job, tmp_path):
    """From every record to the next one, and from the middle of the steps to the file."""
    for done, unit in enumerate(job.units):
        folder = tmp_path / unit
        folder.mkdir()
        for before in job.units[:done]:
            shutil.copy(job.folder / f"{before}.safetensors", folder)
        with pytest.raises(Killed):
            calibrate(fresh(), data(), SETTINGS, LastJournal(folder, 1), memory=PLENTY)
        assert (folder / f"{unit}.safetensors").read_bytes() == job.record(unit), unit
    model = fresh()
    calibrate(model, data(), SETTINGS, Journal(tmp_path / job.units[-1], {}), memory=PLENTY)
    assert saved(model, tmp_path) == job.file


@pytest.mark.parametrize("memory", [0, 20_000, 40_000])
def test_memory_changes_no_number(job, memory, tmp_path):
    """Nor do the last batches of phases, which are smaller and stand between others."""
    model = fresh()
    calibrate(model, data(), SETTINGS, Journal(tmp_path / "journal", {}), memory=memory)
    assert saved(model, tmp_path) == job.file


def test_outputs_are_kept_for_whole_batches_within_the_memory(job):
    model, whole = job.model, data()
    blocks = [block.module for block in model.blocks()]
    cache = PrefixCache(model, blocks, whole, 3, PLENTY)
    assert [len(rows) for rows in cache.rows] == [3, 3, 1, 3, 1, 3, 2]
    assert [b.stop == c.start for b, c in pairwise(cache.rows)] and cache.rows[-1].stop == 16
    first = cache.nodes[0].module
    cache.mark_done(first)
    cache.__dict__["samples"] = 9
    cache.extend()
    assert [len(x) for x in cache.quantized[first]] == [3, 3, 1]


def test_the_order_of_the_phases_in_the_data_does_not_count(job, tmp_path):
    inputs, settings = tuple(x[SHUFFLED] for x in data().inputs), replace(SETTINGS, rounding=None)
    model, other = fresh(), fresh()
    calibrate(model, CalibrationSet(inputs), settings)
    calibrate(other, data(), settings)
    assert saved(model, tmp_path) == saved(other, tmp_path)


def test_a_saved_job_samples_as_the_network_in_memory(job, tmp_path):
    save_quantized(tmp_path / "q", job.model)
    again = load_quantized(network(100), tmp_path / "q", act_bit=8, sm_abit=5, split=True, adapter=ADAPTER)
    for part in by_phase(job.model, data()):
        assert torch.equal(again(*part.inputs), job.model(*part.inputs))


def test_a_calibrated_network_can_be_calibrated_again(job, tmp_path):
    """Its activations are quantized by phase from the start."""
    model = copy.deepcopy(job.model)
    calibrate(model, data(TIMES[SHUFFLED]), SETTINGS, Journal(tmp_path / "journal", {}))
    assert model.has_phases and saved(model, tmp_path) != job.file


@pytest.mark.parametrize(("first", "later"), [(16, 8), (8, 16), (8, 4)])
def test_a_plan_of_phases_leaves_the_network_as_it_was(first, later):
    model = fresh(act=QuantSpec(first), softmax_bits=16, act_rules=(), act_phases=((600, later),))
    plan = make_plan(model, next(data().batches(3)), 16, SETTINGS, 0)
    plain = fresh(act=QuantSpec(min(first, later)), softmax_bits=16, act_rules=(), act_phases=())
    expected = make_plan(plain, next(data().batches(3)), 16, SETTINGS, 0)
    costs = [[(b.path, b.sites, b.sample_bytes, b.iteration_bytes) for b in p.blocks] for p in (plan, expected)]
    assert costs[0] == costs[1] and any(b.sites for b in plan.blocks)
    assert all(site.quantizer is None for site in model.sites())
