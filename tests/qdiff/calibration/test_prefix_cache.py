"""A cache of finished blocks changes no number and spares their computation."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from qdiff.calibration.block_graph import cache_bytes_per_sample, cached_samples
from qdiff.calibration.capture import Captured, Store, capture
from qdiff.calibration.data import CalibrationSet
from qdiff.calibration.prefix_cache import PrefixCache
from qdiff.calls import Samples
from qdiff.quant_model import QuantModel
from tests.qdiff.calibration.networks import BATCH, SAMPLES, modules, toy

PLENTY = 10**10


def learn(model: QuantModel, data: CalibrationSet, memory: int, folder) -> Iterator[tuple[PrefixCache, Captured]]:
    """Capture block by block, each of which is changed then and done with."""
    cache = PrefixCache(model, modules(model), data, BATCH, memory)
    for block in model.blocks():
        yield cache, capture(cache, block.module, Store(PLENTY, folder))
        for layer in block.layers.values():
            layer.set_codes(15 - layer.codes if layer.codes.numel() < 500 else layer.codes.clamp(1, 14))
        cache.mark_done(block.module)


def tensors(captured: Captured) -> list[Tensor]:
    return [*captured.inputs.tensors, *captured.target.tensors]


def kept_outputs(cache: PrefixCache) -> list[Samples]:
    return [batch for kept in (cache.quantized, cache.original) for batches in kept.values() for batch in batches]


def copy_of(model: QuantModel) -> dict[str, Tensor]:
    return {key: x.clone() for key, x in model.state_dict().items()}


def test_every_number_is_the_same(golden_job, tmp_path):
    """Without room, with room for one batch, with room for all."""
    model, data = golden_job
    before, ways = copy_of(model), []
    nodes = PrefixCache(model, modules(model), data, BATCH, 0).nodes
    beside, batch = SAMPLES * max(node.captured_bytes for node in nodes), BATCH * cache_bytes_per_sample(nodes)
    for memory, samples in ((0, 0), (beside + batch, 2), (beside + 2 * batch, 3)):
        assert cached_samples(nodes, SAMPLES, BATCH, memory) == samples
        ways.append([captured for _, captured in learn(model, data, memory, tmp_path)])
        model.load_state_dict(before)
    for plain, *others in zip(*ways, strict=True):
        for other in others:
            for a, b in zip(tensors(plain), tensors(other), strict=True):
                assert torch.equal(a, b)
    assert not any("forward" in vars(module) for module in model.modules())


def test_memory_that_is_kept_is_what_was_reckoned(golden_job, tmp_path):
    model, data = golden_job
    most = 0
    for cache, _ in learn(model, data, PLENTY, tmp_path):
        held = sum(x.untyped_storage().nbytes() for kept in kept_outputs(cache) for x in kept.tensors)
        assert held <= cache.max_bytes
        most = max(most, held)
    assert most > cache.max_bytes / 4, "what is reckoned is not far beyond what is kept"


def test_what_was_passed_is_not_computed_again(golden_job, tmp_path):
    """A capture computes the block before, to pass it, and the block itself; each in both networks, batch by batch."""
    model, data = golden_job
    computed: dict[nn.Module, int] = {}

    def counting(layer: nn.Module):
        operation = layer.operation

        def counted(*args):
            computed[layer] = computed.get(layer, 0) + 1
            return operation(*args)

        return counted

    for layer in model.layers().values():
        layer.operation = counting(layer)
    cache = PrefixCache(model, modules(model), data, BATCH, PLENTY)
    before: set[nn.Module] = set()
    for node in cache.nodes:  # in the order of the network
        computed.clear()
        capture(cache, node.module, Store(PLENTY, tmp_path))
        cache.mark_done(node.module)
        own = {*node.module.modules()}
        assert computed.keys() <= before | own
        assert set(computed.values()) <= {batches := -(-SAMPLES // BATCH), 2 * batches}
        before = own


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
        assert all(map(torch.equal, tensors(plain), tensors(kept)))


def test_blocks_are_passed_in_the_order_of_the_network_only(golden_job, tmp_path):
    """One that is done, behind one that is not, is computed: what comes to it may change."""
    model, data = golden_job
    cache = PrefixCache(model, modules(model), data, BATCH, PLENTY)
    first, second, third = (node.module for node in cache.nodes[:3])
    cache.mark_done(second)
    capture(cache, third, Store(PLENTY, tmp_path))
    assert cache.cached == []
    cache.mark_done(first)
    capture(cache, third, Store(PLENTY, tmp_path))
    assert cache.cached == [first, second]
