"""QuantModel against golden networks, against networks with weights quantized by hand, and as a torch module."""

import copy
import json
import pickle
from dataclasses import replace

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from ddim.models.diffusion import Model
from qdiff.adapters import Adapter, ProductKind, adapter_for, adapter_of
from qdiff.adaptive_rounding import AdaRoundQuantizer
from qdiff.observers import Observer
from qdiff.policy import QuantPolicy, QuantSpec
from qdiff.quant_layer import QuantModule, SplitQuantizer, UniformAffineQuantizer
from qdiff.quant_model import QuantModel
from tests.golden_networks import GOLDEN, exact_output, golden_alpha, golden_state_dict, load_case

ADAPTER = adapter_of("ddim")
W4 = QuantPolicy(QuantSpec(4, per_channel=True, range_search="minmax"))
W4A8 = replace(W4, act=QuantSpec(8, range_search="minmax"), split=True)
CIFAR10 = json.loads((GOLDEN / "cifar10_ddim_quantized_split_wa.json").read_text())


def calibrated(model: nn.Module, inputs: tuple[Tensor, ...], policy: QuantPolicy = W4A8, adapter=ADAPTER) -> QuantModel:
    quantized = QuantModel(model, policy, adapter)
    with quantized.observing(Observer):
        run(quantized, inputs)
    for layer in quantized.layers().values():
        layer.set_codes(layer.codes ^ 1)  # no longer the nearest ones, as if they had been learned
    return quantized


def run(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    with torch.no_grad():
        return model(*inputs)


def relative(x: Tensor, golden: Tensor) -> float:
    return (torch.dist(x, golden) / golden.norm()).item()


# -- numbers of the published implementation


@pytest.mark.parametrize("name", ["ddim_w4a8_split", "ddim_w8a8_asym_sm16"])
def test_golden_outputs(name):
    golden = case, scales = load_case(name)
    policy = QuantPolicy(
        QuantSpec(case.weight_bit, per_channel=True, range_search="max"),
        QuantSpec(case.act_bit, symmetric=case.a_sym),
        case.sm_abit,
        case.split,
    )

    def scale(key: str, spec: QuantSpec) -> UniformAffineQuantizer:
        return UniformAffineQuantizer(scales[f"scale.{key}.delta"], scales[f"scale.{key}.zero_point"], spec)

    def published(path: str, kind: str, spec: QuantSpec, split: tuple[int, ...] | None):
        keys = [f"model.{path}.{kind}{slot}" for slot in (("", "_0") if split else ("",))]
        parts = [scale(key, spec) for key in keys]
        return keys, SplitQuantizer(parts, split) if split else parts[0]

    def learned_layer(path: str, layer: nn.Module, split: tuple[int, ...] | None) -> QuantModule:
        keys, quantizer = published(path, "weight_quantizer", policy.weight_for(path), split)
        names = iter(keys)
        rounding = quantizer.per_slice(
            lambda q, part: AdaRoundQuantizer(q, part, golden_alpha(f"{next(names)}.alpha", part.shape)), layer.weight
        )
        return QuantModule(layer, quantizer, rounding.codes(layer.weight))

    model = Model(case.config).eval()
    model.load_state_dict(golden_state_dict({key: x.shape for key, x in model.state_dict().items()}))
    quantized = QuantModel(model, policy, ADAPTER, learned_layer)
    inputs = scales["x"], scales["t"]
    assert relative(run(quantized, inputs), scales["w_output"]) < 1e-5
    for site in quantized.sites():
        path = site.path.removeprefix("model.").replace(".qk_matmul", "").replace(".smv_matmul", "")
        site.set(published(path, site.name, site.spec, site.split)[1])
    assert relative(exact_output(quantized, golden), scales["wa_output"]) < 1e-5
    with quantized.full_precision():
        assert relative(run(quantized, inputs), scales["fp_output"]) < 1e-5


# -- blocks, layers and sites


@pytest.fixture(scope="module")
def cifar10() -> QuantModel:
    config = OmegaConf.load(GOLDEN.parents[1] / "configs" / "cifar10.yml")
    return QuantModel(Model(config), W4A8, ADAPTER)


def test_published_network_has_its_layers_in_the_order_of_a_published_checkpoint(cifar10):
    suffix = ".weight_quantizer.alpha"
    published = [key.removesuffix(suffix) for key in CIFAR10 if key.endswith(suffix)]
    assert list(cifar10.layers()) == published


def test_every_layer_is_in_exactly_one_block_in_definition_order(cifar10):
    blocks = cifar10.blocks()
    assert [path for block in blocks for path in block.layers] == list(cifar10.layers())
    assert [(s.path, s.name) for block in blocks for s in block.sites] == [(s.path, s.name) for s in cifar10.sites()]


def test_blocks_of_the_published_network(cifar10):
    # two residual blocks per level down, three up, two in the middle; attention after each at 16x16 and in the middle;
    # by themselves: two layers of the time embedding, the first and the last one, three changes of size each way
    paths = [block.path for block in cifar10.blocks()]
    assert len(paths) == (2 * 4 + 3 * 4 + 2) + (2 + 3 + 1) + (2 + 1 + 1 + 3 + 3) == 38
    assert paths[:5] == [
        f"model.{p}" for p in ("temb.dense.0", "temb.dense.1", "conv_in", "down.0.block.0", "down.0.block.1")
    ]
    assert paths[-2:] == ["model.up.3.upsample.conv", "model.conv_out"]
    assert [p for p in paths if ".mid." in p] == ["model.mid.block_1", "model.mid.attn_1", "model.mid.block_2"]


def test_published_network_has_as_many_activation_quantizers_as_a_published_checkpoint(cifar10):
    published = sum(".act_quantizer" in key and key.endswith(".delta") for key in CIFAR10)
    assert sum(len(site.split or (0,)) for site in cifar10.sites()) == published


def test_published_network_is_split_where_a_published_checkpoint_is(cifar10):
    suffix = ".weight_quantizer_0.alpha"
    published = {key.removesuffix(suffix): shape[1] for key, shape in CIFAR10.items() if key.endswith(suffix)}
    assert {path: layer.split[1] for path, layer in cifar10.layers().items() if layer.split} == published


def test_softmax_has_bits_of_its_own(make_ddim):
    quantized = QuantModel(make_ddim(), replace(W4A8, softmax_bits=16), ADAPTER)
    bits = {(site.path.rpartition(".")[2], site.name): site.spec.bits for site in quantized.sites()}
    special = {key for key, b in bits.items() if b == 16}
    assert special == {("smv_matmul", "act_quantizer_w")}
    assert set(bits.values()) == {8, 16}


def test_rules_change_the_layers_that_they_match(make_ddim, ddim_inputs):
    rules = (("model.mid.*", 8), ("*.conv_out", 3))
    mixed = QuantModel(make_ddim(), replace(W4, weight_rules=rules), ADAPTER).layers()
    uniform = {bits: uniform_layers(make_ddim(), bits) for bits in (3, 4, 8)}
    for path, layer in mixed.items():
        bits = 8 if path.startswith("model.mid.") else 3 if path == "model.conv_out" else 4
        assert torch.equal(layer.codes, uniform[bits][path].codes), path
        assert torch.equal(layer.quantized_weight(), uniform[bits][path].quantized_weight()), path


def uniform_layers(model: nn.Module, bits: int) -> dict[str, QuantModule]:
    return QuantModel(model, replace(W4, weight=replace(W4.weight, bits=bits)), ADAPTER).layers()


def test_rules_change_the_activations_that_they_match(make_ddim):
    rules = (("*.conv_out", None), ("model.mid.*", 6), ("*.smv_matmul.w", 12), ("*.qk_matmul", None))
    quantized = QuantModel(make_ddim(), replace(W4A8, softmax_bits=16, act_rules=rules), ADAPTER)
    bits = {f"{site.path}.{site.name}": site.spec.bits for site in quantized.sites()}
    assert not [key for key in bits if "conv_out" in key or "qk_matmul" in key]
    assert bits["model.conv_in.act_quantizer"] == 8
    assert bits["model.mid.block_1.conv1.act_quantizer"] == 6
    assert bits["model.mid.attn_1.smv_matmul.act_quantizer_v"] == 6
    assert bits["model.mid.attn_1.smv_matmul.act_quantizer_w"] == 12
    assert {key for key in bits if key.endswith("_w")} == {k for k, b in bits.items() if b == 12}
    assert [s.path for block in quantized.blocks() for s in block.sites] == [s.path for s in quantized.sites()]


def test_a_network_whose_rules_leave_out_all_activations_is_one_of_weights_alone(make_ddim, ddim_inputs):
    quantized = calibrated(make_ddim(), ddim_inputs, replace(W4A8, act_rules=(("*", None),)))
    alone = calibrated(make_ddim(), ddim_inputs, replace(W4A8, act=None))
    assert quantized.sites() == []
    assert torch.equal(run(quantized, ddim_inputs), run(alone, ddim_inputs))


def test_a_rule_that_matches_nothing_is_refused_and_nothing_is_changed(make_ddim):
    model = make_ddim()
    for rules in ({"weight_rules": (("model.mid", 8),)}, {"act_rules": (("model.mid", 8),)}):
        with pytest.raises(ValueError, match=r"'model.mid' matches no layer .* did you mean model\.mid\.\*"):
            QuantModel(model, replace(W4A8, **rules), ADAPTER)
    assert not [m for m in model.modules() if isinstance(m, QuantModule)]


def test_weights_alone_have_no_sites(make_ddim):
    quantized = QuantModel(make_ddim(), W4, ADAPTER)
    assert quantized.sites() == []
    assert all(block.sites == [] for block in quantized.blocks())


def test_no_parameter_waits_for_a_gradient(make_ddim):
    assert not any(p.requires_grad for p in QuantModel(make_ddim(), W4, ADAPTER).parameters())


# -- the quantized network is the network with quantized weights


@pytest.mark.parametrize("split", [False, True])
def test_output_is_that_of_the_network_with_rounded_weights(make_ddim, ddim_inputs, split):
    reference = make_ddim()
    for path, layer in reference.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            shortcut = split and path.startswith("up.") and path.endswith("nin_shortcut")
            skip = reference.get_submodule(path.rpartition(".")[0]).skip_channels if shortcut else 0
            parts = (
                layer.weight.detach().split([layer.weight.shape[1] - skip, skip], dim=1)
                if skip
                else [layer.weight.detach()]
            )
            layer.weight.data = torch.cat([rounded_to_nearest(part) for part in parts], dim=1)
    quantized = QuantModel(make_ddim(), replace(W4, split=split), ADAPTER)
    assert relative(run(quantized, ddim_inputs), run(reference, ddim_inputs)) < 1e-6


def rounded_to_nearest(weight: Tensor) -> Tensor:
    """Asymmetric, 4 bits, a step per output channel from the range with zero."""
    rows = weight.flatten(1)
    low, high = rows.amin(1, keepdim=True).clamp(max=0), rows.amax(1, keepdim=True).clamp(min=0)
    delta = (high - low) / 15
    zero_point = (-low / delta).round()
    return (((rows / delta).round() + zero_point).clamp(0, 15) - zero_point).mul(delta).view_as(weight)


def test_full_precision_is_the_untouched_network_and_ends(make_ddim, ddim_inputs):
    exact = run(make_ddim(), ddim_inputs)
    quantized = calibrated(make_ddim(), ddim_inputs)
    before = run(quantized, ddim_inputs)
    assert not torch.equal(before, exact)
    with quantized.full_precision():
        assert torch.equal(run(quantized, ddim_inputs), exact)
        with quantized.full_precision():
            assert torch.equal(run(quantized, ddim_inputs), exact)
        assert torch.equal(run(quantized, ddim_inputs), exact)
    assert torch.equal(run(quantized, ddim_inputs), before)


def test_full_precision_ends_with_an_exception_too(make_ddim, ddim_inputs):
    quantized = calibrated(make_ddim(), ddim_inputs)
    before = run(quantized, ddim_inputs)
    with pytest.raises(KeyboardInterrupt), quantized.full_precision():
        raise KeyboardInterrupt
    assert torch.equal(run(quantized, ddim_inputs), before)


@torch.no_grad()
def test_unrounded_is_the_network_with_quantized_activations_alone(make_ddim, ddim_inputs):
    policy = replace(W4, act=QuantSpec(8, range_search="minmax"))
    model = QuantModel(make_ddim(), policy, ADAPTER)
    with model.unrounded():
        torch.testing.assert_close(model(*ddim_inputs), make_ddim()(*ddim_inputs), rtol=0, atol=0)
        with model.observing(Observer):
            model(*ddim_inputs)
        found = model(*ddim_inputs)
    rounded = model(*ddim_inputs)
    with pytest.raises(ZeroDivisionError), model.unrounded():
        assert torch.equal(model(*ddim_inputs), found)
        _ = 1 / 0
    assert torch.equal(model(*ddim_inputs), rounded) and not torch.equal(found, rounded)
    layer = model.layers()["model.conv_in"]
    with model.unrounded():
        x = layer.act_quantizer(ddim_inputs[0])
        assert torch.equal(layer(ddim_inputs[0]), layer.operation(x, layer.weight, layer.bias))


@torch.no_grad()
def test_corrected_biases_are_part_of_the_state_and_not_of_full_precision(make_ddim, ddim_inputs):
    model = QuantModel(make_ddim(), W4, ADAPTER)
    for layer in model.layers().values():
        layer.set_bias(layer.bias + 0.1)
    state = model.quantized_state()
    assert state.keys() == QuantModel(make_ddim(), W4, ADAPTER).quantized_state().keys()
    for keep in (False, True):
        again = QuantModel.from_state(make_ddim(), W4, ADAPTER, state, keep_weights=keep)
        assert torch.equal(again(*ddim_inputs), model(*ddim_inputs))
    with again.full_precision():
        assert torch.equal(again(*ddim_inputs), make_ddim()(*ddim_inputs))


def test_without_its_weights_a_network_has_no_full_precision(make_ddim, ddim_inputs):
    quantized = calibrated(make_ddim(), ddim_inputs)
    before = run(quantized, ddim_inputs)
    next(iter(quantized.layers().values())).forget_full_precision()
    with pytest.raises(ValueError, match="integer weights only"), quantized.full_precision():
        pass
    assert torch.equal(run(quantized, ddim_inputs), before)


def test_nothing_is_quantized_twice(make_ddim):
    model = make_ddim()
    quantized = QuantModel(model, W4, ADAPTER)
    with pytest.raises(ValueError, match="owns parameters"):
        QuantModel(model, W4, ADAPTER)
    assert not any(isinstance(m, QuantModule) for layer in quantized.layers().values() for m in layer.children())


# -- states


def test_a_state_rebuilds_the_network_without_its_weights(make_ddim, ddim_inputs):
    quantized = calibrated(make_ddim(), ddim_inputs)
    state = quantized.quantized_state()
    empty = make_ddim()
    for parameter in empty.parameters():
        parameter.data.fill_(torch.nan)
    rebuilt = QuantModel.from_state(empty, W4A8, ADAPTER, state)
    assert torch.equal(run(rebuilt, ddim_inputs), run(quantized, ddim_inputs))
    again = rebuilt.quantized_state()
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], x) for key, x in state.items())
    with pytest.raises(ValueError, match="integer weights only"), rebuilt.full_precision():
        pass


def test_a_state_has_codes_instead_of_weights(make_ddim, ddim_inputs):
    quantized = calibrated(make_ddim(), ddim_inputs)
    state = quantized.quantized_state()
    for path in quantized.layers():
        assert f"{path}.weight" not in state
        assert state[f"{path}.codes"].dtype == torch.uint8
        assert state[f"{path}.codes"].max() <= 15
    floating = sum(x.numel() for x in state.values() if x.is_floating_point())
    assert floating < 0.1 * sum(p.numel() for p in make_ddim().parameters())


def test_kept_weights_serve_full_precision(make_ddim, ddim_inputs):
    quantized = calibrated(make_ddim(), ddim_inputs)
    state = quantized.quantized_state()
    rebuilt = QuantModel.from_state(make_ddim(), W4A8, ADAPTER, state, keep_weights=True)
    assert torch.equal(run(rebuilt, ddim_inputs), run(quantized, ddim_inputs))
    with rebuilt.full_precision():
        assert torch.equal(run(rebuilt, ddim_inputs), run(make_ddim(), ddim_inputs))


def test_activations_can_be_left_for_later(make_ddim, ddim_inputs):
    quantized = calibrated(make_ddim(), ddim_inputs)
    state = quantized.quantized_state()
    for site in quantized.sites():
        site.set(None)
    rebuilt = QuantModel.from_state(make_ddim(), W4A8, ADAPTER, state, keep_weights=True, activations=False)
    assert all(site.quantizer is None for site in rebuilt.sites())
    assert torch.equal(run(rebuilt, ddim_inputs), run(quantized, ddim_inputs))
    weights_only = QuantModel.from_state(make_ddim(), W4A8.without_activations(), ADAPTER, state)
    assert torch.equal(run(weights_only, ddim_inputs), run(quantized, ddim_inputs))


@pytest.mark.parametrize(
    "suffix",
    [".codes", ".weight_quantizer.delta", ".act_quantizer.zero_point", ".act_quantizer_w.delta", ".norm1.bias"],
)
def test_a_missing_tensor_is_a_key_error(make_ddim, ddim_inputs, suffix):
    state = calibrated(make_ddim(), ddim_inputs).quantized_state()
    lost = next(key for key in state if key.endswith(suffix))
    del state[lost]
    with pytest.raises(KeyError, match=lost):
        QuantModel.from_state(make_ddim(), W4A8, ADAPTER, state)


def test_an_impossible_step_is_a_value_error(make_ddim, ddim_inputs):
    state = calibrated(make_ddim(), ddim_inputs).quantized_state()
    state["model.conv_in.weight_quantizer.delta"] = -state["model.conv_in.weight_quantizer.delta"]
    with pytest.raises(ValueError, match="step size"):
        QuantModel.from_state(make_ddim(), W4A8, ADAPTER, state)


def test_loading_a_state_dict_brings_the_weights_it_names(make_ddim, ddim_inputs):
    quantized, other = (calibrated(make_ddim(), ddim_inputs) for _ in range(2))
    for layer in quantized.layers().values():
        layer.set_codes(15 - layer.codes)
    assert not torch.equal(run(quantized, ddim_inputs), run(other, ddim_inputs))
    assert not any("dequantized" in key for key in quantized.state_dict())
    other.load_state_dict(quantized.state_dict())
    assert torch.equal(run(other, ddim_inputs), run(quantized, ddim_inputs))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_equal_and_independent(make_ddim, ddim_inputs, duplicate):
    quantized = calibrated(make_ddim(), ddim_inputs)
    before = run(quantized, ddim_inputs)
    twin = duplicate(quantized)
    assert torch.equal(run(twin, ddim_inputs), before)
    assert [block.path for block in twin.blocks()] == [block.path for block in quantized.blocks()]
    with twin.full_precision():
        assert torch.equal(run(quantized, ddim_inputs), before)
    for layer in twin.layers().values():
        layer.set_codes(torch.zeros_like(layer.codes))
    assert torch.equal(run(quantized, ddim_inputs), before)


# -- networks of other families


class Mixture(nn.Module):
    def forward(self, a, b):
        return a * b


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = Mixture()
        self.conv = nn.Conv1d(4, 4, 3, padding=1)
        self.inner = nn.Sequential(nn.Linear(6, 6), nn.SiLU(), nn.Linear(6, 6))

    def forward(self, x):
        return x + self.mix(self.conv(x), self.inner(x).sigmoid())


class Toy(nn.Module):
    def __init__(self, extra: nn.Module | None = None):
        super().__init__()
        self.first, self.norm = nn.Linear(6, 6), nn.LayerNorm(6)
        self.pairs = nn.ModuleList([Pair(), nn.Sequential(Pair(), nn.Conv1d(4, 4, 1))])
        self.extra = extra or nn.Identity()

    def forward(self, x):
        x = self.norm(self.first(x))
        return self.extra(self.pairs[1](self.pairs[0](x)))


TOY = Adapter(
    "toy",
    Toy,
    (Pair,),
    {Mixture: ProductKind(("a", "b"), softmax="b")},
    (nn.LayerNorm,),
    lambda model: {},
)


@pytest.fixture
def toy() -> QuantModel:
    generator = torch.Generator().manual_seed(0)
    model = Toy()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 3
    return calibrated(model, toy_inputs(), adapter=TOY)


def toy_inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor]:
    return (torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(1)).to(dtype),)


def test_nested_blocks_and_single_layers_alternate(toy):
    pair = ["conv", "inner.0", "inner.2"]
    assert {
        block.path.removeprefix("model."): [p.removeprefix(f"{block.path}.") for p in block.layers]
        for block in toy.blocks()
    } == {
        "first": ["model.first"],
        "pairs.0": pair,
        "pairs.1.0": pair,
        "pairs.1.1": ["model.pairs.1.1"],
    }
    assert {site.name for site in toy.sites() if site.is_softmax} == {"act_quantizer_b"}  # as its adapter says
    assert [site.name for site in toy.blocks()[1].sites] == [
        "act_quantizer_a",
        "act_quantizer_b",
        *["act_quantizer"] * 3,
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_whole_network_takes_another_dtype(toy, dtype):
    before = run(toy, toy_inputs())
    toy.to(dtype)
    after = run(toy, toy_inputs(dtype))
    assert after.dtype == dtype
    assert relative(after.float(), before) < 0.05
    with toy.full_precision():
        assert run(toy, toy_inputs(dtype)).dtype == dtype
    toy.load_state_dict(toy.state_dict())
    assert relative(run(toy, toy_inputs(dtype)).float(), before) < 0.05


def test_autocast_runs_quantized_layers_in_its_dtype(toy):
    before = run(toy, toy_inputs())
    with torch.autocast("cpu", torch.bfloat16):
        after = run(toy, toy_inputs())
    assert relative(after.float(), before) < 0.05


def test_a_module_that_nothing_describes_is_named():
    with pytest.raises(ValueError, match=r"extra \(PReLU\) owns parameters"):
        QuantModel(Toy(nn.PReLU()), W4, TOY)


def test_a_layer_at_two_paths_is_refused_and_nothing_is_changed():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, shared)
    with pytest.raises(ValueError, match=r"1 \(Linear\) is also 0"):
        QuantModel(model, W4, TOY)
    assert model[0] is shared


def test_a_subclass_of_a_layer_is_not_taken_for_the_layer():
    class Lookalike(nn.Linear):
        pass

    with pytest.raises(ValueError, match=r"extra \(Lookalike\) owns parameters"):
        QuantModel(Toy(Lookalike(6, 6)), W4, TOY)


def test_the_adapter_comes_from_the_package_of_the_network(make_ddim):
    assert adapter_for(make_ddim()) is ADAPTER
    with pytest.raises(ValueError, match=r"Toy is not a network of ddim, ldm: .* pass adapter=Adapter\(family="):
        adapter_for(Toy())
    with pytest.raises(KeyError):
        adapter_of("unet")
