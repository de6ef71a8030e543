"""Memory that is counted, and memory that a plan states and a calibration then keeps to."""

import pytest
import torch
from torch import nn

from ldm.modules import slices
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from qdiff.adapters import adapter_for
from qdiff.block_recon import Schedule
from qdiff.calibration.data import CalibrationSet
from qdiff.calibration.job import calibrate
from qdiff.calibration.measure import make_plan
from qdiff.calibration.memory import batch_peak, peak_bytes, without_values
from qdiff.calibration.settings import CalibrationSettings
from qdiff.calls import Call
from qdiff.checkpoints.load import load_quantized, save_quantized
from qdiff.files.journal import Journal
from qdiff.policy import QuantPolicy, QuantSpec
from qdiff.quant_model import QuantModel

KB = 4 * 256  # of a tensor of 256 float32
SIDE, BATCH, HEADS, SAMPLES = 24, 4, 2, 4
POLICY = QuantPolicy(
    QuantSpec(4, per_channel=True, range_search="minmax"), QuantSpec(8, range_search="minmax"), 16, split=True
)


def test_peak_counts_what_is_alive_at_one_time():
    outside = torch.zeros(256)

    def run():
        a = outside + 1
        b = a * 2
        del a
        return b.exp()

    assert peak_bytes(run) == 2 * KB
    assert peak_bytes(lambda: outside.exp().exp().exp()) == 2 * KB, "a temporary goes when the next one is there"
    assert peak_bytes(lambda: [outside + i for i in range(5)]) == 5 * KB


def test_peak_counts_no_views_and_nothing_from_outside():
    outside = torch.zeros(16, 16)
    assert peak_bytes(lambda: outside.t()[:3].reshape(-1, 1).unsqueeze(0).mT.add_(1)) <= 3 * 16 * 4
    assert peak_bytes(lambda: (outside.view(-1), outside.t(), outside.add_(1))) == 0
    assert peak_bytes(lambda: (outside + 1).view(-1)[3:]) == KB


def test_peak_sees_what_autograd_keeps():
    x = torch.zeros(256, requires_grad=True)

    def forward():
        return x.exp().exp().exp().sum()

    with torch.no_grad():
        alone = peak_bytes(forward)
    assert alone == 2 * KB
    assert 3 * KB <= peak_bytes(forward) < 4 * KB, "each exponential keeps its output"
    assert 4 * KB <= peak_bytes(lambda: torch.autograd.grad(forward(), x)) < 6 * KB


def test_peak_of_a_batch():
    layer = nn.Linear(256, 256)
    with torch.no_grad():
        for size in (1, 2, 7, 32, 100):
            run = peak_bytes(lambda: layer(torch.zeros(size, 256)))  # noqa: B023
            assert batch_peak(layer, layer, Call((torch.zeros(1, 256),)), size) == run == 2 * size * KB, (
                "inputs and outputs"
            )


def test_a_part_that_does_not_grow_is_counted_in_full():
    def run(x):
        return layer.weight.exp() @ x.T

    layer = nn.Linear(256, 256)
    with torch.no_grad():
        for size in (1, 32):
            assert batch_peak(layer, run, Call((torch.zeros(1, 256),)), size) == (256 + 2 * size) * KB
        assert batch_peak(layer, run, Call((torch.zeros(1, 256),)), 64) == 2 * (256 + 64) * KB, "beyond, in proportion"


def test_a_batch_is_not_computed():
    layer = nn.Linear(1, 2**36, bias=False, device="meta")
    with torch.no_grad():
        assert batch_peak(layer, layer, Call((torch.zeros(1, 1),)), 32) == 32 * (2**36 + 1) * 4, "8 TiB"


def test_values_come_back_as_the_same_objects():
    layer = nn.BatchNorm1d(3).requires_grad_(False)
    layer.bias.requires_grad_(True)
    before = layer.state_dict(keep_vars=True)
    with pytest.raises(ZeroDivisionError), without_values(layer):
        assert all(x.is_meta for x in layer.state_dict().values())
        assert [name for name, x in layer.named_parameters() if x.requires_grad] == ["bias"]
        raise ZeroDivisionError
    after = layer.state_dict(keep_vars=True)
    assert before.keys() == after.keys() and all(after[key] is before[key] for key in before)


def test_low_memory_samples_in_less_than_half_of_that_of_full_precision(tmp_path):
    """Weights and tensors of a forward together, in a network whose weights take most of it."""

    def network() -> UNetModel:
        return UNetModel(4, 64, 4, 2, [1, 2], channel_mult=[1, 2, 4], num_heads=4).eval()

    def taken(model: nn.Module) -> int:
        held = sum(x.nbytes for x in (*model.parameters(), *model.buffers()))
        with torch.no_grad():
            return held + peak_bytes(lambda: model(torch.zeros(1, 4, 8, 8), torch.zeros(1)))

    policy = QuantPolicy(QuantSpec(4, per_channel=True, range_search="minmax"), None)
    save_quantized(tmp_path / "q", QuantModel(network(), policy, adapter_for(network())), config={}, provenance={})
    full, packed = network(), load_quantized(network(), tmp_path / "q", low_memory=True)
    assert taken(packed) < 0.5 * taken(full)


@pytest.mark.parametrize(("running", "memory"), [(False, 0), (True, 2**30)])
def test_memory_is_as_planned_and_not_that_of_all_scores(running, memory, tmp_path, monkeypatch):
    torch.manual_seed(0)
    network = UNetModel(
        4, 32, 4, 1, [1], channel_mult=[1], num_heads=HEADS, use_spatial_transformer=True, context_dim=8
    ).eval()
    data = CalibrationSet(
        (torch.randn(SAMPLES, 4, SIDE, SIDE), torch.arange(SAMPLES), torch.randn(SAMPLES, 5, 8)),
    )
    model = QuantModel(network, POLICY, adapter_for(network)).eval()
    settings = CalibrationSettings(
        BATCH, Schedule(2, 1e-3), Schedule(1, 1e-3), range_samples=SAMPLES, running_stat=running
    )
    whole = make_plan(model, next(data.batches(2)), SAMPLES, settings, memory)
    monkeypatch.setattr(slices, "SCORES", 2 * SIDE**4)
    plan = make_plan(model, next(data.batches(2)), SAMPLES, settings, memory)
    assert plan.working_bytes < 0.7 * whole.working_bytes
    peak = peak_bytes(lambda: calibrate(model, data, settings, Journal(tmp_path, {}), memory=memory))
    counted = plan.captured_bytes + plan.cached_bytes  # what lies in mapped files is counted too
    assert 0.8 * plan.working_bytes < peak - counted < 1.05 * plan.working_bytes
