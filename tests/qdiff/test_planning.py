import shutil
import time
from types import SimpleNamespace

import psutil
import pytest
import torch

from qdiff.adapters import adapter_for
from qdiff.block_recon import Schedule
from qdiff.calibration import CalibrationSettings
from qdiff.errors import UserError
from qdiff.planning import GIB, BlockPlan, Plan, clock, make_plan
from qdiff.policy import QuantPolicy, QuantSpec
from qdiff.quant_model import QuantModel
from tests.tiny import tiny_network

BOTH = CalibrationSettings(10, Schedule(100, 1e-3), Schedule(50, 1e-3))
WEIGHTS = CalibrationSettings(10, Schedule(100, 1e-3), None)
STEPS = CalibrationSettings(10, None, Schedule(50, 1e-3))
NOTHING = CalibrationSettings(10, None, None)

# path, weights, sites, bytes per sample, seconds of a forward of a batch
BLOCKS = [BlockPlan("a", 1000, 1, 100, 0.1), BlockPlan("long.path", 5000, 0, 400, 0.2), BlockPlan("c", 10, 2, 300, 0.4)]


def plan(settings: CalibrationSettings) -> Plan:
    return Plan(BLOCKS, 25, settings, 0.7)


def test_sizes():
    assert plan(BOTH).captured == plan(WEIGHTS).captured == 25 * 400
    assert plan(STEPS).captured == 25 * 300, "the largest block has no step size to learn"
    assert plan(NOTHING).captured == 0
    assert plan(BOTH).learning == 5000 * 4 * 4, "alpha, gradient and two moments in float32"
    assert plan(STEPS).learning == plan(NOTHING).learning == 0
    assert [plan(BOTH).on_disk(budget) for budget in (0, 9_999, 10_000)] == [10_000, 10_000, 0]


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


@pytest.fixture
def machine(monkeypatch):
    """Sets the free bytes of memory and disk."""

    def free(memory: float, disk: float) -> None:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=memory))
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=disk))

    return free


@pytest.mark.parametrize(
    ("memory", "disk", "budget"),
    [(90_000, 0, 10_000), (80_000, 10_000, 0), (89_999, 10_000, 9_999)],
    ids=["memory", "disk", "both"],
)
def test_what_just_fits(memory, disk, budget, machine, tmp_path):
    machine(memory, disk)
    plan(BOTH).check(tmp_path, budget)


@pytest.mark.parametrize(
    ("memory", "disk", "budget", "flag"),
    [
        (89_999, 10**9, 10_000, "lower --cali_memory, or --cali_n"),
        (79_999, 10**9, 0, "lower --cali_memory, or --cali_n"),
        (10**9, 9_999, 0, "raise --cali_memory, or lower --cali_n"),
        (10**9, 9_999, 9_999, "raise --cali_memory, or lower --cali_n"),
    ],
)
def test_what_cannot_fit_is_refused_with_the_flag_to_change(memory, disk, budget, flag, machine, tmp_path):
    machine(memory, disk)
    with pytest.raises(UserError) as caught:
        plan(BOTH).check(tmp_path, budget)
    assert flag in str(caught.value) and "\n" not in str(caught.value)


def test_without_learning_nothing_is_captured_and_nothing_refused(machine, tmp_path):
    machine(0, 0)
    plan(NOTHING).check(tmp_path, 0)


def test_numbers_of_a_refusal(machine, tmp_path):
    large = Plan([BlockPlan("a", 0, 0, 3 * GIB, 1)], 4, WEIGHTS, 1)
    machine(2 * GIB, 100 * GIB)
    with pytest.raises(UserError, match=r"needs 8\.0 GiB of memory, 2\.0 are free"):
        large.check(tmp_path, 8 * GIB)
    machine(64 * GIB, GIB)
    with pytest.raises(UserError, match=r"need 12\.0 GiB on the disk of .*, 1\.0 are free"):
        large.check(tmp_path, 8 * GIB)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00:00"), (59.6, "0:01:00"), (3599, "0:59:59"), (3661, "1:01:01"), (360_000, "100:00:00")],
)
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_table():
    lines = plan(BOTH).table(budget=4000).splitlines()
    columns = [line.split() for line in lines[:4]]
    assert columns[0] == ["block", "weights", "captured", "time"]
    assert columns[2][:2] == ["long.path", "5,000"]
    assert [row[-1] for row in columns[1:]] == [
        clock(sum(plan(BOTH).block_seconds(j, s) for s, j in plan(BOTH).units if j == i)) for i in range(3)
    ]
    assert lines[4] == "3 blocks, 25 calibration samples"
    assert clock(plan(BOTH).seconds) in lines[-1]


def test_measured_on_a_network():
    policy = QuantPolicy(QuantSpec(4, per_channel=True, range_search="minmax"), QuantSpec(8), split=True)
    weights = {name: x.numel() for name, x in tiny_network().named_parameters()}
    network = tiny_network()
    model = QuantModel(network, policy, adapter_for(network)).eval()
    batch = torch.randn(2, 3, 8, 8), torch.tensor([0, 5])
    slow = model.get_submodule("model.mid.attn_1.q")
    slow.register_forward_pre_hook(lambda module, args: time.sleep(0.2))
    made = make_plan(model, batch, 9, CalibrationSettings(6, Schedule(1, 1), None))
    assert [b.path for b in made.blocks] == [b.path for b in model.blocks()]
    found = {b.path: b for b in made.blocks}
    for path, block in found.items():
        own = {n for n in weights if f"model.{n}".startswith(f"{path}.") and n.endswith("weight") and "norm" not in n}
        assert block.weights == sum(weights[n] for n in own), path
    assert found["model.conv_in"].sample_bytes == 4 * (3 + 32) * 8 * 8
    assert found["model.mid.block_1"].sample_bytes == 4 * (2 * 64 * 4 * 4 + 128), "the time embedding is captured too"
    assert found["model.up.1.block.0"].sample_bytes == 4 * ((128 + 64) * 4 * 4 + 128)
    assert (found["model.conv_in"].sites, found["model.mid.attn_1"].sites) == (1, 8)
    assert found["model.mid.block_1"].sites == 3 and found["model.up.1.block.0"].sites == 4
    per_batch = 6 / 2 * 0.2  # the batch of calibration is three times as large
    assert per_batch < found["model.mid.attn_1"].seconds < 3 * per_batch
    assert made.forward > per_batch
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules() if m is not slow)
