"""Multiply-accumulates and bit operations: counted by hand, and against counts of networks that are not quantized."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from qdiff.adapters import Adapter, ProductKind, adapter_for
from qdiff.calls import Call
from qdiff.checkpoints.load import load_as_written, save_quantized
from qdiff.config.networks import network_shapes
from qdiff.config.schema import read_yaml
from qdiff.evaluation.bops import LeafBops, NetworkBops, TrajectoryBops, empty_model, network_bops
from qdiff.observers import Observer
from qdiff.policy import QuantPolicy, QuantSpec
from qdiff.quant_model import QuantModel
from tests.qdiff.adapters import test_third_party as third_party
from tests.qdiff.calibration.networks import toy_adapter
from tests.qdiff.loops import gaussian

CONFIGS = Path(__file__).parents[3] / "configs"
W4 = QuantPolicy(QuantSpec(4, per_channel=True, range_search="minmax"))
W4A8 = replace(W4, act=QuantSpec(8, range_search="minmax"))
FP = 32 * 32


def counted(policy: QuantPolicy, adapter: Adapter = third_party.ADAPTER) -> NetworkBops:
    """The cost of the small UNet with attention, on images of 4 x 4 pixels."""
    return network_bops(QuantModel(third_party.network(0), policy, adapter), Call(third_party.INPUTS))


# ---- MACs by hand


@pytest.mark.parametrize(
    ("layer", "x", "macs"),
    [
        # output positions x output channels x input channels of a group x kernel
        (nn.Conv2d(4, 6, 3), (4, 8, 10), 6 * 8 * 6 * 4 * 9),
        (nn.Conv2d(4, 6, 3, padding=1), (4, 8, 10), 8 * 10 * 6 * 4 * 9),  # zeros of the padding are multiplied too
        (nn.Conv2d(4, 6, 3, stride=2, padding=1), (4, 8, 10), 4 * 5 * 6 * 4 * 9),
        (nn.Conv2d(4, 6, 3, padding="same", dilation=2), (4, 8, 10), 8 * 10 * 6 * 4 * 9),
        (nn.Conv2d(4, 6, (1, 3), groups=2), (4, 8, 10), 8 * 8 * 6 * 2 * 3),
        (nn.Conv2d(4, 4, 3, groups=4, bias=False), (4, 8, 10), 6 * 8 * 4 * 1 * 9),
        (nn.Conv1d(4, 6, 5, stride=3), (4, 20), 6 * 6 * 4 * 5),
        (nn.Linear(7, 3), (7,), 7 * 3),
        (nn.Linear(7, 3, bias=False), (5, 7), 5 * 7 * 3),
        (nn.Linear(7, 3), (2, 5, 7), 2 * 5 * 7 * 3),
    ],
)
def test_a_layer(layer, x, macs):
    for policy, bits in ((W4, (4, 32)), (W4A8, (4, 8))):
        model = QuantModel(nn.Sequential(layer), policy, toy_adapter())
        found = network_bops(model, Call((torch.zeros(3, *x),)))
        assert found == NetworkBops({"model.0": LeafBops(macs, (bits,))}, macs)
        assert found.bops() == macs * bits[0] * bits[1] and found.fp_bops == macs * FP


def test_an_attention_product_has_the_bits_of_both_operands():
    """On 4 x 4 pixels of 6 channels, both products have 16 x 16 x 6 MACs; a layer projects to 18 channels."""
    leaves = counted(third_party.POLICY).leaves
    attention = {p.removeprefix("model.attention."): leaf for p, leaf in leaves.items() if "attention" in p}
    assert attention == {
        "project": LeafBops(16 * 6 * 18, ((4, 6),)),
        "similarity": LeafBops(16 * 16 * 6, ((6, 6),)),
        "average": LeafBops(16 * 16 * 6, ((5, 6),)),  # attention weights have 5 bits
    }
    assert attention["average"].bops() == 16 * 16 * 6 * 5 * 6


def test_rules_change_bits():
    policy = replace(
        third_party.POLICY,
        act_rules=(("model.middle", None), ("model.attention.similarity", None), ("*.average.value", 16)),
    )
    bits = {path: leaf.bits for path, leaf in counted(policy).leaves.items()}
    assert bits["model.down.conv"] == ((8, 6),) and bits["model.up.conv"] == ((4, 6),)
    assert bits["model.middle"] == ((4, 32),)
    assert bits["model.attention.similarity"] == ((32, 32),) and bits["model.attention.average"] == ((5, 16),)


# ---- nothing is forgotten


class Mixed(nn.Module):
    """Two layers that are quantized, and products that are not, of every kind that people write."""

    def __init__(self):
        super().__init__()
        self.first, self.up = nn.Conv2d(2, 4, 1), nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.last, self.table = nn.Linear(4, 5), nn.Parameter(gaussian(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        rows = self.up(self.first(x)).flatten(2).transpose(1, 2)  # (N, 64, 4)
        rows = nn.functional.scaled_dot_product_attention(rows, rows, rows)  # 2 x 64 x 64 x 4
        rows = torch.einsum("nrc,cd->nrd", rows, self.table) @ self.table  # 2 x 64 x 4 x 4
        return self.last(rows) * (rows @ self.table[0])[..., None] * (self.table[0] @ self.table[1])  # 64 x 4 + 4


def test_what_is_not_a_leaf_counts_in_floating_point():
    adapter = Adapter("mixed", plain=(nn.ConvTranspose2d, Mixed))
    found = network_bops(QuantModel(Mixed(), W4A8, adapter), Call((torch.zeros(2, 2, 4, 4),)))
    up, attention, products = 16 * 4 * 4 * 4, 2 * 64 * 64 * 4, 2 * 64 * 4 * 4 + 64 * 4 + 4
    assert {path: leaf.macs for path, leaf in found.leaves.items()} == {"model.first": 16 * 8, "model.last": 64 * 20}
    assert found.other_macs == up + attention + products
    assert found.bops() == (16 * 8 + 64 * 20) * 4 * 8 + (up + attention + products) * FP
    assert found.macs == network_bops(Mixed(), Call((torch.zeros(2, 2, 4, 4),))).macs


def test_all_adds_up_to_the_count_of_the_plain_network():
    x, t = third_party.INPUTS[0][:1], third_party.INPUTS[1][:1]
    with FlopCounterMode(display=False) as counter:
        third_party.network(0)(x, t)
    plain = network_bops(third_party.network(0), Call((x, t)))
    assert plain == NetworkBops({}, counter.get_total_flops() // 2) and plain.bops() == plain.fp_bops
    found = counted(W4A8)
    assert found.macs == plain.macs == sum(leaf.macs for leaf in found.leaves.values())
    unknown = replace(third_party.ADAPTER, products={})
    assert counted(W4A8, unknown).other_macs == 2 * 16 * 16 * 6


# ---- the network stays as it is


def test_any_batch_is_counted_as_one_sample_and_arguments_may_be_keywords():
    x, t = third_party.INPUTS
    model = QuantModel(third_party.network(0), W4A8, third_party.ADAPTER)
    assert network_bops(model, Call((x[:1],), {"t": t[:1]})) == counted(W4A8)


def test_counting_is_the_same_before_and_after_calibration_and_for_packed_layers(tmp_path):
    model, call = QuantModel(third_party.network(0), W4A8, third_party.ADAPTER), Call(third_party.INPUTS)
    before, output = network_bops(model, call), third_party.output(model)
    assert torch.equal(third_party.output(model), output), "counting changes nothing"
    with model.observing(Observer):
        call(model)
    save_quantized(tmp_path / "file", model)
    packed = load_as_written(third_party.network(1), tmp_path / "file", low_memory=True, adapter=third_party.ADAPTER)
    assert before == network_bops(model, call) == network_bops(packed, call)


def test_a_network_keeps_its_values_while_it_is_counted():
    layer, seen = nn.Linear(2, 2), []
    layer.register_forward_hook(lambda _, args, output: seen.append((output.is_meta, layer.weight.is_meta)))
    network_bops(nn.Sequential(layer), Call((torch.zeros(1, 2),)))
    assert seen == [(True, False)]


# ---- phases and trajectories

PHASED = replace(W4A8, softmax_bits=5, act_rules=(("model.middle", 6),), act_phases=((10, 3), (600, 4)))


def test_phases_change_the_bits_of_activations():
    model, call = QuantModel(third_party.network(0), PHASED, third_party.ADAPTER), Call(third_party.INPUTS)
    found = network_bops(model, call)
    assert found.leaves["model.up.conv"].bits == ((4, 8), (4, 3), (4, 4))
    assert found.leaves["model.middle"].bits == ((4, 6),) * 3
    assert found.leaves["model.attention.average"].bits == ((5, 8), (5, 3), (5, 4))
    for phase, bits in enumerate((8, 3, 4)):
        alone = replace(PHASED, act=replace(PHASED.act, bits=bits), act_phases=())
        other = counted(alone)
        assert found.bops(phase) == other.bops() and found.macs == other.macs
    with model.observing(Observer):  # activations that are quantized by phase, of a call in several phases
        for t in (4, 20, 700):
            model(third_party.INPUTS[0], torch.full((6,), t))
    assert network_bops(model, Call((third_party.INPUTS[0], torch.tensor([4, 20, 700, 4, 20, 700])))) == found


def test_a_trajectory_is_the_sum_of_its_steps():
    call = NetworkBops({"a": LeafBops(10, ((4, 8), (4, 3))), "b": LeafBops(7, ((8, 8), (3, 3)))}, 18, range(2))
    early, late = 10 * 4 * 3 + 7 * 9 + FP, 10 * 4 * 8 + 7 * 64 + FP
    once = TrajectoryBops(call, (1, 1, 0))
    assert once.steps == [early, early, late] and once.bops == 2 * early + late
    assert (once.macs, once.fp_bops) == (3 * 18, 3 * 18 * FP)
    guided = TrajectoryBops(call, (1, 1, 0), rows=2)
    assert guided.steps == [2 * x for x in once.steps]
    assert (guided.macs, guided.bops, guided.fp_bops) == (2 * once.macs, 2 * once.bops, 2 * once.fp_bops)


# ---- published networks

PUBLISHED = {  # layers, attention products: MACs; the sums stand in docs/measurements.md
    "cifar10.yml": (6_053_953_536, 167_903_232),
    "lsun_bedrooms-ldm-vq-4.yaml": (96_017_969_152, 5_182_062_592),
    "lsun_churches-ldm-kl-8.yaml": (18_640_945_152, 2_282_643_456),
    "cin256-v2.yaml": (99_769_810_944, 4_457_349_120),
    "v1-inference.yaml": (338_610_585_600, 63_026_135_040),
}


def by_hand(network: nn.Module, call: Call) -> Counter[str]:
    """MACs of a plain network by the formulas of its layers and products, from the shapes that they are called with."""
    found: Counter[str] = Counter()

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            found["layers"] += output.numel() * module.weight[0].numel()
        elif re.search("Score", type(module).__name__):  # (..., N, M) from a width: all of one operand but N
            found["products"] += output.numel() * args[0][0].numel() // output.shape[1]
        elif re.search("Value", type(module).__name__):  # M values for each number of the output
            found["products"] += output.numel() * args[1].shape[2]

    for module in network.modules():
        module.register_forward_hook(hook)
    with torch.no_grad():
        call(network)
    return found


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks(name):
    path = next(CONFIGS.rglob(name))
    plain, call = network_shapes(read_yaml(path), path)
    layers, products = PUBLISHED[name]
    assert by_hand(plain, call) == {"layers": layers, "products": products}
    plain, call = network_shapes(read_yaml(path), path)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call(plain)
    model = empty_model(plain, replace(W4A8, split=True), adapter_for(plain))
    found = network_bops(model, call)
    assert 2 * found.macs == counter.get_total_flops() == 2 * (layers + products) and found.other_macs == 0
    assert sum(found.leaves[path].macs for path in model.layers()) == layers
    assert found.bops() == 4 * 8 * layers + 8 * 8 * products


def test_an_empty_model_is_counted_as_a_full_one():
    network = third_party.network(0).to("meta")
    empty = empty_model(network, third_party.POLICY, third_party.ADAPTER)
    assert all(x.is_meta for x in (*empty.parameters(), *empty.buffers()))
    assert network_bops(empty, Call(third_party.INPUTS)) == counted(third_party.POLICY)


def test_kinds_of_products_are_those_of_the_adapter():
    """The bits of a product follow its adapter: without a softmax, both operands are like other activations."""
    adapter = replace(
        third_party.ADAPTER,
        products={**third_party.ADAPTER.products, third_party.Average: ProductKind(("share", "value"))},
    )
    assert counted(third_party.POLICY, adapter).leaves["model.attention.average"].bits == ((6, 6),)
