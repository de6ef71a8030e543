"""Replaying finished blocks: the way through the network, and that it changes no number."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from qdiff.adapters import adapter_for, adapter_of
from qdiff.calibration.capture import Captured, Store, capture
from qdiff.calibration.data import CalibrationSet
from qdiff.calibration.prefix_cache import Replay, kept_bytes, replayed_samples, route
from qdiff.observers import Observer
from qdiff.policy import QuantPolicy, QuantSpec
from qdiff.quant_model import QuantModel
from tests.golden_networks import golden_state_dict, load_case

POLICY = QuantPolicy(QuantSpec(4, per_channel=True, range_search="minmax"), QuantSpec(8, range_search="minmax"))
CASES = ["ddim_w4a8_split", "ldm_kl_w8a8", "ldm_class_w4a8", "sd_w4a8_split_sm16"]
SAMPLES, BATCH = 3, 2
PLENTY = 10**10


@pytest.fixture(params=CASES)
def job(request) -> tuple[QuantModel, CalibrationSet]:
    """A network with quantized activations, and its data: the golden inputs, some of them a little changed."""
    case = load_case(request.param)
    network = adapter_of(request.param.partition("_")[0].replace("sd", "ldm")).build(case.settings.config).eval()
    network.load_state_dict(golden_state_dict({key: x.shape for key, x in network.state_dict().items()}))
    model = QuantModel(network, POLICY, adapter_for(network)).eval()
    given = [case.tensors[name] for name in ("x", "t", "context") if name in case.tensors]
    rows = torch.arange(SAMPLES) % len(given[0])
    inputs = [x[rows] for x in given]
    inputs[0] = inputs[0] + 0.1 * torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(0))
    with model.observing(Observer):
        model(*inputs)
    return model, CalibrationSet(tuple(inputs))


def modules(model: QuantModel) -> list[nn.Module]:
    return [block.module for block in model.blocks()]


def learn(model: QuantModel, data: CalibrationSet, memory: int, folder) -> Iterator[tuple[Replay, Captured]]:
    """Capture block by block, each of which is changed then and done with."""
    replay = Replay(model, modules(model), data, BATCH, memory)
    for block in model.blocks():
        yield replay, capture(replay, block.module, Store(PLENTY, folder))
        for layer in block.layers.values():
            layer.set_codes(15 - layer.codes if layer.codes.numel() < 500 else layer.codes.clamp(1, 14))
        replay.settle(block.module)


def copy_of(model: QuantModel) -> dict[str, Tensor]:
    return {key: x.clone() for key, x in model.state_dict().items()}


def test_every_number_is_the_same(job, tmp_path):
    """Without room, with room for one batch, with room for all."""
    model, data = job
    before, ways = copy_of(model), []
    stops = Replay(model, modules(model), data, BATCH, 0).stops
    beside, batch = SAMPLES * max(stop.captured for stop in stops), BATCH * kept_bytes(stops)
    for memory, samples in ((0, 0), (beside + batch, 2), (beside + 2 * batch, 3)):
        assert replayed_samples(stops, SAMPLES, BATCH, memory) == samples
        ways.append([captured for _, captured in learn(model, data, memory, tmp_path)])
        model.load_state_dict(before)
    for plain, *others in zip(*ways, strict=True):
        for other in others:
            for a, b in zip((*plain.inputs, plain.target), (*other.inputs, other.target), strict=True):
                assert torch.equal(a, b)
    assert not any("forward" in vars(module) for module in model.modules())


def test_memory_that_is_kept_is_what_was_reckoned(job, tmp_path):
    model, data = job
    most = 0
    for replay, _ in learn(model, data, PLENTY, tmp_path):
        kept = [x for way in (replay.quantized, replay.original) for xs in way.values() if xs for x in xs]
        held = sum(x.untyped_storage().nbytes() for x in kept)
        assert held <= replay.bytes
        most = max(most, held)
    assert most > replay.bytes / 4, "what is reckoned is not far beyond what is kept"


def test_what_was_passed_is_not_computed_again(job, tmp_path):
    """A capture computes the block before, to pass it, and the block itself; each in both networks, batch by batch."""
    model, data = job
    computed: dict[nn.Module, int] = {}

    def counting(layer: nn.Module):
        operation = layer.operation

        def counted(*args):
            computed[layer] = computed.get(layer, 0) + 1
            return operation(*args)

        return counted

    for layer in model.layers().values():
        layer.operation = counting(layer)
    replay = Replay(model, modules(model), data, BATCH, PLENTY)
    before: set[nn.Module] = set()
    for stop in replay.stops:  # in the order of the network
        computed.clear()
        capture(replay, stop.module, Store(PLENTY, tmp_path))
        replay.settle(stop.module)
        own = {*stop.module.modules()}
        assert computed.keys() <= before | own
        assert set(computed.values()) <= {batches := -(-SAMPLES // BATCH), 2 * batches}
        before = own


def test_sources_are_what_a_block_depends_on(job):
    """Change one block's output while all others are held: those that have it as a source get other inputs."""
    model, data = job
    inputs = [x[:1] for x in data.inputs]
    stops = route(model, modules(model), inputs)
    outputs, given = {}, {}

    def note(module, args, output):
        outputs[module], given[module] = output, args

    def answer(changed: nn.Module | None):
        def hook(module, args, output):
            given[module] = args
            return outputs[module] + (module is changed)

        return hook

    def forward(hook) -> dict[nn.Module, tuple[Tensor, ...]]:
        handles = [stop.module.register_forward_hook(hook) for stop in stops]
        with torch.no_grad(), model.full_precision():
            model(*inputs)
        for handle in handles:
            handle.remove()
        return {module: tuple(x.clone() for x in args) for module, args in given.items()}

    expected = forward(note)
    for source in stops[:: max(1, len(stops) // 8)]:
        found = forward(answer(source.module))
        for stop in stops:
            differs = any(not torch.equal(a, b) for a, b in zip(found[stop.module], expected[stop.module]))
            assert differs == (source.module in stop.sources)


def toy(network: nn.Module) -> QuantModel:
    adapter = replace(adapter_of("ddim"), blocks=(), products={}, splits=lambda model: {})
    return QuantModel(network, POLICY, adapter).eval()


def test_a_network_may_change_what_was_kept_in_place(tmp_path):
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(3, 3) for _ in range(3)])

        def forward(self, x):
            return self.layers[2](self.layers[1](self.layers[0](x).add_(1)))

    model, data = toy(InPlace()), CalibrationSet((torch.randn(SAMPLES, 3),))
    before, ways = copy_of(model), []
    for memory in (0, PLENTY):
        model.load_state_dict(before)
        ways.append([captured for _, captured in learn(model, data, memory, tmp_path)])
    for plain, kept in zip(*ways, strict=True):
        assert torch.equal(plain.inputs[0], kept.inputs[0]) and torch.equal(plain.target, kept.target)


@pytest.mark.parametrize("times", [0, 2])
def test_a_block_that_is_not_called_once_is_named(times):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            for _ in range(times):
                x = self.second(x)
            return self.first(x)

    model = toy(Odd())
    with pytest.raises(ValueError, match=f"calls model.second {times} times"):
        _ = Replay(model, modules(model), CalibrationSet((torch.zeros(2, 3),)), 1, 0).stops


def test_blocks_are_passed_in_the_order_of_the_network_only(job, tmp_path):
    """One that is done, behind one that is not, is computed: what comes to it may change."""
    model, data = job
    replay = Replay(model, modules(model), data, BATCH, PLENTY)
    first, second, third = (stop.module for stop in replay.stops[:3])
    replay.settle(second)
    capture(replay, third, Store(PLENTY, tmp_path))
    assert replay.passed == []
    replay.settle(first)
    capture(replay, third, Store(PLENTY, tmp_path))
    assert replay.passed == [first, second]
