import math
from types import SimpleNamespace

import psutil
import pytest
import torch
from torch import nn

from qdiff.adapters import adapter_for
from qdiff.block_recon import Schedule
from qdiff.calibration import measure
from qdiff.calibration.measure import _prefix_seconds, forward_seconds, make_plan
from qdiff.calibration.memory import peak_bytes
from qdiff.calibration.partial_forward import block_call
from qdiff.calibration.settings import CalibrationSettings
from qdiff.calls import Call
from qdiff.errors import UserError
from qdiff.functional import lp_loss
from qdiff.objectives import LearnedRounding
from qdiff.observers import Observer
from qdiff.policy import QuantPolicy, QuantSpec
from qdiff.quant_model import QuantModel
from tests.tiny import tiny_network


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """A clock that goes on where the test says so."""
    clock = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(measure, "synchronized_time", lambda x: clock.seconds)
    return clock


def test_forward_seconds(clock):
    class Slow(nn.Module):
        calls = 0

        def forward(self, x):
            Slow.calls += 1
            clock.seconds += 2.0**-Slow.calls
            return x

    assert forward_seconds(Slow(), Call((torch.zeros(1),))) == 0.25, "of the second"
    assert Slow.calls == 2


# The plan


def test_measured_on_a_network(clock):
    policy = QuantPolicy(QuantSpec(4, per_channel=True, range_search="minmax"), QuantSpec(8), split=True)
    weights = {name: x.numel() for name, x in tiny_network().named_parameters()}
    network = tiny_network()
    model = QuantModel(network, policy, adapter_for(network)).eval()
    batch = Call((torch.randn(2, 3, 8, 8), torch.tensor([0, 5])))
    slow = model.get_submodule("model.mid.attn_1.q")

    def take_time(module, args):
        clock.seconds += 0.5

    slow.register_forward_pre_hook(take_time)
    made = make_plan(model, batch, 9, CalibrationSettings(6, Schedule(1, 1), None), 10**9)
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
    assert made.cached_samples == 9, "memory has room for all samples"
    assert made.data_bytes == 9 * (4 * 3 * 8 * 8 + 8), "images and timesteps"
    seconds = {path: block.seconds for path, block in found.items() if block.seconds}
    assert seconds == {"model.mid.attn_1": 1.5}, "the batch of calibration is three times as large"
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules() if m is not slow)


def test_prefix_seconds():
    """Called a, b, c, d; learned a, c, b, d: c is reached from behind a, d from behind b, which is passed then."""
    seconds = {"a": 1.0, "b": 2.0, "c": 4.0, "d": 8.0}
    assert _prefix_seconds(seconds, ["a", "c", "b", "d"]) == {"a": (1, 1), "c": (7, 7), "b": (3, 2), "d": (15, 14)}
    assert _prefix_seconds(seconds, list(seconds)) == {"a": (1, 1), "b": (3, 3), "c": (7, 6), "d": (15, 12)}


def network(act: bool = True) -> QuantModel:
    fp = tiny_network()
    spec = QuantSpec(4, per_channel=True, range_search="minmax")
    return QuantModel(fp, QuantPolicy(spec, QuantSpec(8) if act else None, split=True), adapter_for(fp)).eval()


ONE = Call((torch.randn(1, 3, 8, 8), torch.tensor([5])))


def test_without_a_budget_what_is_captured_and_kept_fits_beside_the_computing(tmp_path, monkeypatch):
    """Memory is the limit, and the job still begins: fewer outputs are kept."""
    settings = CalibrationSettings(2, Schedule(1, 1e-3), None)
    plenty = make_plan(network(), ONE, 100, settings, None)
    assert plenty.cached_samples == 100
    free = plenty.working_bytes + 2 * plenty.captured_bytes + plenty.cached_bytes
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    made = make_plan(network(), ONE, 100, settings, None)
    assert made.budget == (free - made.working_bytes) // 2 and 0 < made.cached_samples < 100 and made.on_disk_bytes == 0
    made.check(tmp_path, None)
    beforehand = make_plan(network(), ONE, 100, settings, None, data_in_memory=False)
    assert beforehand.budget == (free - made.working_bytes - made.data_bytes) // 2
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=made.working_bytes - 1))
    with pytest.raises(UserError, match="lower --cali_batch_size"):
        make_plan(network(), ONE, 100, settings, None).check(tmp_path, None)


def test_processes_divide_memory_and_batches(monkeypatch):
    """Each takes what one takes for half of the batch, and has half of the budget."""
    settings, half = (CalibrationSettings(size, Schedule(1, 1e-3), None) for size in (4, 2))
    two = make_plan(network(), ONE, 100, settings, 10**6, processes=2)
    assert (two.processes, two.budget) == (2, 10**6 // 2)
    assert two.cached_samples == make_plan(network(), ONE, 100, settings, 10**6 // 2).cached_samples
    one = make_plan(network(), ONE, 100, half, 10**6)
    assert [b.iteration_bytes for b in two.blocks] == [b.iteration_bytes for b in one.blocks]
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10**9))
    two = make_plan(network(), ONE, 100, settings, None, processes=2)
    assert two.budget == (10**9 - 2 * two.working_bytes) // 2 // 2


def test_memory_of_a_network():
    """What is estimated from one sample is what a forward of all of them takes."""
    settings = CalibrationSettings(6, None, None, range_samples=11)
    model = network(act=False)
    with torch.no_grad():
        alone = peak_bytes(lambda: model(torch.zeros(6, 3, 8, 8), torch.zeros(6)))
    estimate = make_plan(model, ONE, 100, settings, 0).forward_bytes
    assert math.isclose(estimate, alone, rel_tol=0.01)
    searched = make_plan(network(), ONE, 100, settings, 0).forward_bytes
    assert searched > 11 / 6 * estimate, "eleven samples, and their quantized selves"
    few = make_plan(network(), ONE, 8, settings, 0).forward_bytes
    assert few < searched, "there are no more samples than that"
    with torch.no_grad():
        many = peak_bytes(lambda: model(torch.zeros(60, 3, 8, 8), torch.zeros(60)))
    settings = CalibrationSettings(60, None, None)
    assert math.isclose(make_plan(model, ONE, 100, settings, 0).forward_bytes, many, rel_tol=0.01)


def test_memory_of_an_iteration_grows_with_the_batch_and_with_what_is_learned():
    def iteration(batch_size: int, rounding: bool, steps: bool) -> dict[str, int]:
        schedules = [Schedule(1, 1e-3) if learned else None for learned in (rounding, steps)]
        made = make_plan(network(), ONE, 10, CalibrationSettings(batch_size, *schedules), 0)
        return {b.path: b.iteration_bytes for b in made.blocks}

    nothing, few, many = iteration(2, False, False), iteration(2, True, True), iteration(20, True, True)
    assert set(nothing.values()) == {0}
    assert all(few[path] <= many[path] for path in few) and max(few.values()) < max(many.values())
    weights = {p: sum(x.codes.numel() for x in b.layers.values()) for b in network().blocks() for p in [b.path]}
    rounding = iteration(2, True, False)
    assert all(rounding[path] >= 4 * weights[path] for path in weights), "every weight has a gradient"
    assert all(few[p] == max(rounding[p], steps) for p, steps in iteration(2, False, True).items())


def test_memory_of_the_largest_iteration():
    model, batch = network(act=False), ONE.map(lambda x: x.repeat_interleave(32, 0))
    made = make_plan(model, ONE, 10, CalibrationSettings(32, Schedule(1, 1e-3), None), 0)
    largest = max(made.blocks, key=lambda b: b.iteration_bytes)
    block = next(b for b in model.blocks() if b.path == largest.path)
    call = block_call(model, block.module, batch)

    def iteration():
        output = call.map(torch.clone)(block.module)
        loss = lp_loss(output, torch.zeros_like(output)) + objective.penalty(1, 2)
        torch.autograd.grad(loss, objective.parameters())

    with LearnedRounding(block) as objective:
        assert math.isclose(largest.iteration_bytes, peak_bytes(iteration), rel_tol=0.02)


def test_planning_leaves_the_network_as_it_was():
    model = network()
    before = {key: x.clone() for key, x in model.state_dict().items()}
    make_plan(model, ONE, 10, CalibrationSettings(2, Schedule(1, 1e-3), Schedule(1, 1e-3)), 0)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert all(site.quantizer is None for site in model.sites())
    assert all(layer.rounding is None for layer in model.layers().values())
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())


def test_planning_leaves_the_ranges_of_a_calibrated_network():
    model = network()
    with model.observing(Observer):
        ONE(model)
    before = [site.quantizer for site in model.sites()]
    make_plan(model, ONE, 10, CalibrationSettings(2, None, Schedule(1, 1e-3)), 0)
    assert all(site.quantizer is quantizer for site, quantizer in zip(model.sites(), before))
