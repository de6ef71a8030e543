import shutil
from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest

from qdiff.block_recon import Schedule
from qdiff.calibration.plan import GIB, BlockPlan, Plan, default_budget, format_duration
from qdiff.calibration.settings import CalibrationSettings, ClosedForm
from qdiff.errors import UserError

BOTH = CalibrationSettings(10, Schedule(100, 1e-3), Schedule(50, 1e-3))
WEIGHTS = CalibrationSettings(10, Schedule(100, 1e-3), None)
STEPS = CalibrationSettings(10, None, Schedule(50, 1e-3))
NOTHING = CalibrationSettings(10, None, None)
CLOSED = CalibrationSettings(10, None, None, closed_form=ClosedForm())

# path, weights, sites, bytes per sample and per iteration, seconds: of a batch's forward, way to it, short way
BLOCKS = [
    BlockPlan("a", 1000, 1, 100, 2000, 0.1, 0.1, 0.1),
    BlockPlan("long.path", 5000, 0, 400, 0, 0.2, 0.3, 0.3),
    BlockPlan("c", 10, 2, 300, 1000, 0.4, 0.7, 0.6),
]


def plan(settings: CalibrationSettings, forward_bytes: int = 0, budget: int = 0) -> Plan:
    return Plan(BLOCKS, 25, settings, forward_bytes, budget)


def test_sizes():
    assert plan(BOTH).captured_bytes == plan(WEIGHTS).captured_bytes == 25 * 400
    assert plan(STEPS).captured_bytes == 25 * 300, "the largest block has no step size to learn"
    assert plan(NOTHING).captured_bytes == 0
    assert plan(BOTH).learning_bytes == 5000 * 6 * 4, "alpha, gradient, two moments and two neighbours in float32"
    assert plan(STEPS).learning_bytes == plan(NOTHING).learning_bytes == 0
    assert plan(BOTH).working_bytes == 120_000 + 2000, "the largest block's variables and the largest iteration"
    assert plan(BOTH, forward_bytes=122_001).working_bytes == 122_001, "the two are not at the same time"
    assert [plan(BOTH, 0, budget).on_disk_bytes for budget in (0, 9_999, 10_000)] == [10_000, 10_000, 0]


def test_times():
    """Three batches are captured twice on the way to a block; an iteration is a forward and a backward of two."""
    expected = {0: 6 * 0.1 + 300 * 0.1, 1: 6 * 0.3 + 300 * 0.2, 2: 6 * 0.7 + 300 * 0.4}
    for i, seconds in expected.items():
        assert plan(BOTH).block_seconds(i, "weights") == pytest.approx(seconds)
    assert plan(BOTH).block_seconds(2, "steps") == pytest.approx(6 * 0.7 + 150 * 0.4)
    assert plan(WEIGHTS).seconds == pytest.approx(sum(expected.values()))
    assert plan(BOTH).units == [("weights", 0), ("weights", 1), ("weights", 2), ("steps", 0), ("steps", 2)]
    assert plan(BOTH).seconds == pytest.approx(sum(plan(BOTH).block_seconds(i, stage) for stage, i in plan(BOTH).units))
    assert plan(NOTHING).seconds == 0


def test_times_where_outputs_are_kept():
    """Of the three batches one goes the whole way, two begin with the block before."""
    kept = Plan(BLOCKS, 25, BOTH, 0, cached_samples=20, cached_bytes=7)
    assert kept.block_seconds(0, "weights") == pytest.approx(6 * 0.1 + 300 * 0.1)
    assert kept.block_seconds(2, "steps") == pytest.approx(2 * 0.7 + 4 * 0.6 + 150 * 0.4)


def test_what_is_kept_takes_memory(machine, tmp_path):
    kept = Plan(BLOCKS, 25, BOTH, 0, 10_000, cached_samples=20, cached_bytes=1000)
    machine(133_000, 0)
    kept.check(tmp_path, None)
    machine(132_999, 0)
    with pytest.raises(UserError, match="--cali_memory"):
        kept.check(tmp_path, None)


def test_processes_take_memory_and_disk_each(machine, tmp_path):
    """On GPUs, each has that of one; times and the figures of one process stay as they are."""
    one = replace(plan(BOTH, 0, 10_000), cached_bytes=1000)
    three = replace(one, processes=3)
    assert three.captured_bytes == one.captured_bytes and three.seconds == one.seconds
    machine(3 * 133_000, 0)
    three.check(tmp_path, None)
    machine(3 * 133_000 - 1, 0)
    with pytest.raises(UserError, match="lower --cali_memory, or --cali_n, or --cali_devices 3"):
        three.check(tmp_path, None)
    machine(3 * 11_000, 0)
    three.check(tmp_path, 122_000)
    with pytest.raises(UserError, match="GPU memory"):
        three.check(tmp_path, 121_999)
    machine(10**9, 3 * 10_000)
    replace(three, budget=0).check(tmp_path, None)
    machine(10**9, 3 * 10_000 - 1)
    with pytest.raises(UserError, match="raise --cali_memory, or lower --cali_n, or --cali_devices 3"):
        replace(three, budget=0).check(tmp_path, None)
    assert "3 processes share the learning" in three.table() and "processes" not in one.table()


@pytest.fixture
def machine(monkeypatch):
    """Sets the free bytes of memory and disk."""

    def free(memory: float, disk: float) -> None:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=memory))
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=disk))

    return free


@pytest.mark.parametrize(
    ("memory", "disk", "budget"),
    [(132_000, 0, 10_000), (122_000, 10_000, 0), (131_999, 10_000, 9_999)],
    ids=["memory", "disk", "both"],
)
def test_what_just_fits(memory, disk, budget, machine, tmp_path):
    machine(memory, disk)
    plan(BOTH, 0, budget).check(tmp_path, None)


@pytest.mark.parametrize(
    ("memory", "disk", "budget", "flag"),
    [
        (131_999, 10**9, 10_000, "lower --cali_memory, or --cali_n"),
        (121_999, 10**9, 0, "lower --cali_batch_size, or --cali_range_n"),
        (10**9, 9_999, 0, "raise --cali_memory, or lower --cali_n"),
        (10**9, 9_999, 9_999, "raise --cali_memory, or lower --cali_n"),
    ],
)
def test_what_cannot_fit_is_refused_with_the_flag_to_change(memory, disk, budget, flag, machine, tmp_path):
    machine(memory, disk)
    with pytest.raises(UserError) as caught:
        plan(BOTH, 0, budget).check(tmp_path, None)
    assert flag in str(caught.value) and "\n" not in str(caught.value)


def test_without_learning_nothing_is_captured_and_only_the_forward_counts(machine, tmp_path):
    machine(2000, 0)
    plan(NOTHING).check(tmp_path, None)
    with pytest.raises(UserError, match="lower --cali_batch_size, or --cali_range_n"):
        plan(NOTHING, forward_bytes=2001).check(tmp_path, None)


def test_a_gpu_has_a_memory_of_its_own(machine, tmp_path):
    machine(10_000, 0)
    plan(BOTH, 0, 10_000).check(tmp_path, 122_000)
    with pytest.raises(UserError, match=r"GPU memory.* lower --cali_batch_size"):
        plan(BOTH, 0, 10_000).check(tmp_path, 121_999)


def test_a_default_budget_leaves_room_for_computing(machine):
    machine(1000, 0)
    assert [default_budget(working) for working in (0, 400, 1000, 1001)] == [500, 300, 0, 0]


def test_numbers_of_a_refusal(machine, tmp_path):
    large = Plan([BlockPlan("a", 0, 0, 3 * GIB, 0, 1, 1, 1)], 4, WEIGHTS, 0, 8 * GIB)
    machine(2 * GIB, 100 * GIB)
    with pytest.raises(UserError, match=r"needs 8\.0 GiB of memory, 2\.0 are free"):
        large.check(tmp_path, None)
    machine(64 * GIB, GIB)
    with pytest.raises(UserError, match=r"need 12\.0 GiB on the disk of .*, 1\.0 are free"):
        large.check(tmp_path, None)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00:00"), (59.6, "0:01:00"), (3599, "0:59:59"), (3661, "1:01:01"), (360_000, "100:00:00")],
)
def test_clock(seconds, text):
    assert format_duration(seconds) == text


def test_table():
    lines = plan(BOTH, 0, 4000).table().splitlines()
    columns = [line.split() for line in lines[:4]]
    assert columns[0] == ["block", "weights", "captured", "time"]
    assert columns[2][:2] == ["long.path", "5,000"]
    assert [row[-1] for row in columns[1:]] == [
        format_duration(sum(plan(BOTH).block_seconds(j, s) for s, j in plan(BOTH).units if j == i)) for i in range(3)
    ]
    assert lines[4] == "3 blocks, 25 calibration samples"
    assert format_duration(plan(BOTH).seconds) in lines[-1]
    assert "calibration data: 3.00 GiB" in Plan(BLOCKS, 25, BOTH, 0, data_bytes=3 * GIB).table()


# Closed form

COSTS = [(1, 1, 7), (3, 20, 9000), (2, 5, 8500)]  # of each block, layers, seconds and bytes of solving
SOLVED = [replace(b, layers=n, solve_seconds=s, solve_bytes=size) for b, (n, s, size) in zip(BLOCKS, COSTS)]


def test_the_closed_form_has_a_unit_and_an_iteration_for_each_block():
    closed = Plan(SOLVED, 25, CLOSED, 0)
    assert closed.units == [("solve", 0), ("solve", 1), ("solve", 2)]
    assert closed.iterations("solve") == 1 and closed.iterations("weights") == closed.iterations("steps") == 0
    both = Plan(SOLVED, 25, replace(BOTH, closed_form=ClosedForm()), 0)
    assert both.units == closed.units + plan(BOTH).units


def test_times_of_the_closed_form():
    """Three batches: twice up to the block, in full precision through it, up to each of its layers, on average half."""
    closed = Plan(SOLVED, 25, CLOSED, 0)
    expected = [6 * 0.1 + 3 * (1 + 1) * 0.1 + 1, 6 * 0.3 + 3 * (1 + 2) * 0.2 + 20, 6 * 0.7 + 3 * (1 + 1.5) * 0.4 + 5]
    assert [closed.block_seconds(i, "solve") for i in range(3)] == pytest.approx(expected)
    assert closed.seconds == pytest.approx(sum(expected))
    kept = Plan(SOLVED, 25, CLOSED, 0, cached_samples=20)
    assert kept.block_seconds(2, "solve") == pytest.approx(2 * 0.7 + 4 * 0.6 + 3 * (1 + 1.5) * 0.4 + 5)


def test_memory_of_the_closed_form():
    """Of one block at a time; all inputs are captured, also of blocks without step sizes."""
    closed = Plan(SOLVED, 25, CLOSED, 0)
    assert closed.captured_bytes == 25 * 400 and closed.learning_bytes == 0
    assert closed.working_bytes == 8500 + 1000, "the third block"
    assert Plan(SOLVED, 25, CLOSED, 9501).working_bytes == 9501


def test_the_table_tells_what_the_sensitivity_takes():
    closed = Plan(SOLVED, 25, CLOSED, 0, before={"sensitivity spectrum": 12_000})
    assert closed.forward_seconds(12_000) == pytest.approx(12_000 * 0.7 / 10), "the last block ends the network"
    assert closed.table().splitlines()[-2] == "sensitivity spectrum, before: 12,000 network calls, 0:14:00"
    assert "sensitivity" not in Plan(SOLVED, 25, CLOSED, 0).table()
    assert closed.seconds == Plan(SOLVED, 25, CLOSED, 0).seconds
