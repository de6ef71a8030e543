"""Networks from elsewhere: calibrated as their twin with positional tensors, which has the same numbers."""

import pytest
import torch
from torch import Tensor, nn

from qdiff.adapters import Adapter
from qdiff.block_recon import Schedule
from qdiff.calibration.block_graph import trace_blocks
from qdiff.calibration.capture import Captured, Store, capture
from qdiff.calibration.data import CalibrationSet
from qdiff.calibration.job import calibrate
from qdiff.calibration.measure import make_plan
from qdiff.calibration.prefix_cache import PrefixCache
from qdiff.calibration.settings import CalibrationSettings
from qdiff.files.journal import Journal
from qdiff.quant_model import QuantModel
from tests.qdiff.calibration.keyword_network import (
    CHANNELS,
    POLICY,
    KeywordNetwork,
    PositionalNetwork,
    data,
    quantized,
)
from tests.qdiff.calibration.networks import modules

PLENTY = 10**9
SETTINGS = CalibrationSettings(3, Schedule(20, 3e-2), Schedule(5, 1e-2), range_samples=7)


def jobs() -> list[tuple[QuantModel, CalibrationSet]]:
    """With keywords, then with positional tensors."""
    return list(zip(map(quantized, (KeywordNetwork(), PositionalNetwork())), data(), strict=True))


def captured(model: QuantModel, samples: CalibrationSet, memory: int, folder) -> list[Captured]:
    """All blocks, each of which is changed after it has been captured."""
    cache, found = PrefixCache(model, modules(model), samples, 3, memory), []
    for block in model.blocks():
        found.append(capture(cache, block.module, Store(PLENTY, folder)))
        for layer in block.layers.values():
            layer.set_codes(layer.codes.clamp(1, 5))
        cache.mark_done(block.module)
    assert bool(cache.cached) == bool(memory)
    return found


@pytest.mark.parametrize("memory", [0, PLENTY])
def test_capture(memory, tmp_path):
    """Tensors of samples are those of the twin; constants are there as they were, wherever they stood."""
    ours, twins = (captured(model, samples, memory, tmp_path) for model, samples in jobs())
    for i, (found, twin) in enumerate(zip(ours, twins, strict=True)):
        if not 1 <= i <= 3:
            assert torch.equal(found.inputs.args[0], twin.inputs.args[0])
            assert torch.equal(found.target.tree, twin.target.tree)
            continue
        call, (joined, *shifts) = found.inputs.kwargs, twin.inputs.args
        image = call["image"] if i == 3 else found.inputs.args[0]
        assert torch.equal(torch.cat([image, call["text"]], 1), joined)
        assert all(map(torch.equal, [s for s in call["shifts"] if s is not None], shifts))
        assert torch.equal(call["table"], torch.ones(2, 3)) and call.get("scale", 1.0) == (0.5 if i == 2 else 1.0)
        target = found.target.tree
        if i == 2:
            assert target["mask"] is call["mask"] is None and call["as_dict"] is True
            target = target["image"], target["text"]
        assert torch.equal(torch.cat(target[:2], 1), twin.target.tree)


@pytest.mark.parametrize("memory", [0, PLENTY])
def test_a_calibration_learns_the_same(memory, tmp_path):
    learned = []
    for model, samples in jobs():
        nearest = {path: layer.codes.clone() for path, layer in model.layers().items()}
        name = type(model.model).__name__
        calibrate(model, samples, SETTINGS, Journal(tmp_path / name, {}), memory=memory)
        learned.append(model.quantized_state())
        moved = [path for path, layer in model.layers().items() if not torch.equal(layer.codes, nearest[path])]
        assert len(moved) > len(nearest) / 2, "otherwise the comparison says little"
    ours, twin = learned
    assert ours.keys() == twin.keys()
    for key in ours:
        torch.testing.assert_close(ours[key], twin[key], rtol=1e-5 if key.endswith("delta") else 0, atol=0, msg=key)


def test_a_plan(tmp_path):
    """The same tensors take the same bytes, but for the streams that the twin's forward joins."""
    ours, twin = (make_plan(model, next(samples.batches(3)), 7, SETTINGS, PLENTY) for model, samples in jobs())
    assert [b.path for b in ours.blocks] == [b.path for b in twin.blocks]
    assert [b.sample_bytes for b in ours.blocks] == [b.sample_bytes for b in twin.blocks]
    assert all(0 < a.iteration_bytes <= b.iteration_bytes for a, b in zip(ours.blocks, twin.blocks))
    assert ours.cached_samples == twin.cached_samples == 7 and ours.data_bytes == twin.data_bytes


# What blocks hand on beside samples


class Adding(nn.Module):
    """A block: its layer's output, plus what it finds in `extra`."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(CHANNELS, CHANNELS)

    def forward(self, x: Tensor, extra=None) -> Tensor:
        return self.layer(x) + (0 if extra is None else extra.flatten()[:1])


class Choosing(nn.Module):
    """A block that also returns integers (N,)."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(CHANNELS, CHANNELS)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.layer(x)
        return x, x.argmax(1)


class Chain(nn.Module):
    """Two blocks; `make(x)` is the second one's `extra`."""

    def __init__(self, make):
        super().__init__()
        self.first, self.second, self.make = Adding(), Adding(), make

    def forward(self, x):
        return self.second(self.first(x), extra=self.make(x))


class Gathering(nn.Module):
    """The choice of the first block reaches the third one past the second."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = Choosing(), Adding(), nn.Linear(CHANNELS, CHANNELS)

    def forward(self, x):
        x, chosen = self.first(x)
        return self.third(self.second(x.detach()).roll(1, 1).gather(1, chosen[:, None]).expand(-1, CHANNELS))


class Numbered(nn.Module):
    """The first block also returns the same integers for all samples, as many as there are in a batch."""

    class Block(Choosing):
        def forward(self, x):
            return super().forward(x)[0], torch.arange(3).flip(0)

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = Numbered.Block(), Adding(), nn.Linear(3, CHANNELS)

    def forward(self, x):
        x, order = self.first(x)
        return self.third(self.second(x)[:, order])


def model_of(network: nn.Module) -> QuantModel:
    adapter = Adapter("toy", type(network), (Adding, Choosing, Numbered.Block), {}, (), lambda model: {})
    return QuantModel(network, POLICY, adapter).eval()


ROWS = CalibrationSet((torch.randn(6, CHANNELS, generator=torch.Generator().manual_seed(0)),))


def test_a_constant_with_as_many_rows_as_a_batch_has_samples_stays_whole(tmp_path):
    table = torch.arange(3.0 * CHANNELS).view(3, CHANNELS)
    _, second = captured(model_of(Chain(lambda x: table)), ROWS, 0, tmp_path)
    assert len(second) == 6 and torch.equal(second.inputs.kwargs["extra"], table)
    assert torch.equal(second.inputs[torch.tensor([5, 0])].kwargs["extra"], table)


def test_a_constant_with_one_row_stays_whole_whatever_the_last_batch(tmp_path):
    table = torch.ones(1, CHANNELS)
    data = CalibrationSet((torch.cat([*ROWS.inputs, *ROWS.inputs])[:7],))  # batches of 3, 3 and 1
    for memory in (0, PLENTY):
        _, second = captured(model_of(Chain(lambda x: table)), data, memory, tmp_path)
        assert len(second) == 7 and second.inputs.kwargs["extra"].shape == (1, CHANNELS)


@pytest.mark.parametrize("make", [lambda x: x.mean(), lambda x: x.mean(0)[None, :].repeat(2, 1)])
def test_a_constant_that_changes_with_the_batch_names_the_block(make, tmp_path):
    model = model_of(Chain(make))
    cache = PrefixCache(model, modules(model), ROWS, 3, 0)
    with pytest.raises(ValueError, match=r"model\.second cannot be calibrated: two batches differ in a constant"):
        capture(cache, model.get_submodule("model.second"), Store(PLENTY, tmp_path))


def test_a_block_without_samples_is_named():
    class Constant(Chain):
        def forward(self, x):
            return self.second(x, extra=self.first(torch.ones(5, CHANNELS)))

    model = model_of(Constant(None))
    with pytest.raises(ValueError, match=r"model\.first cannot be calibrated by itself: no tensor has the batch \(1\)"):
        trace_blocks(model, modules(model), ROWS.call[:1])


def same_with_and_without_memory(network: nn.Module, folder) -> None:
    model = model_of(network)
    before = {key: x.clone() for key, x in model.state_dict().items()}
    ways = []
    for memory in (0, PLENTY):
        model.load_state_dict(before)
        ways.append(captured(model, ROWS, memory, folder))
    for plain, cached in zip(*ways, strict=True):
        assert all(map(torch.equal, plain.inputs.tensors, cached.inputs.tensors))
        assert all(map(torch.equal, plain.target.tensors, cached.target.tensors))


def test_outputs_without_gradient_are_kept_for_all_that_follows(tmp_path):
    model = model_of(Gathering())
    first, _, third = trace_blocks(model, modules(model), ROWS.call[:1])
    assert first.module in third.sources
    same_with_and_without_memory(Gathering(), tmp_path)


def test_constants_among_outputs_are_there_although_the_block_is_not_computed(tmp_path):
    same_with_and_without_memory(Numbered(), tmp_path)
