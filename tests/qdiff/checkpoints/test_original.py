"""The original's layout against the key lists of its checkpoints and against codes computed one by one."""

import json

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from ddim.models.diffusion import Model
from qdiff.adapters import adapter_for
from qdiff.checkpoints.original import from_original, is_original, original_shapes, summarize
from qdiff.checkpoints.validate import legacy_owners, splits_of, state_shapes
from qdiff.policy import QuantPolicy, QuantSpec
from qdiff.quant_layer import UniformAffineQuantizer
from tests.golden_networks import GOLDEN
from tests.original_checkpoints import SPLITS, W4A8_SPLIT, W8A8, original_checkpoint

CONFIGS = GOLDEN.parent.parent / "configs"


@pytest.fixture(scope="module", params=[W4A8_SPLIT, W8A8])
def original(request):
    return original_checkpoint(request.param)


def converted(original, state=None):
    s = original.case.settings
    weight = QuantSpec(s.weight_bit, per_channel=True, range_search="max")
    policy, model = QuantPolicy(weight, QuantSpec(s.act_bit), s.sm_abit, s.split), original.network()
    adapter = adapter_for(model)
    shapes, owners = state_shapes(model, policy, adapter), legacy_owners(model, adapter)
    wanted = original_shapes(shapes, splits_of(model, policy, adapter), owners)
    assert wanted == {key: tuple(x.shape) for key, x in original.state.items()}
    return from_original(state or original.state, shapes, policy, owners)


def test_keys_and_shapes_are_those_of_the_published_checkpoint():
    with torch.device("meta"):
        model = Model(OmegaConf.load(CONFIGS / "cifar10.yml"))
    adapter, policy = adapter_for(model), QuantPolicy(act=QuantSpec(8), split=True)
    owners = legacy_owners(model, adapter)
    found = original_shapes(state_shapes(model, policy, adapter), splits_of(model, policy, adapter), owners)
    manifest = json.loads((GOLDEN / "cifar10_ddim_quantized_split_wa.json").read_text())
    assert found == {key: tuple(shape) for key, shape in manifest.items()}


def test_codes_are_those_of_the_formula(original):
    ours, top = converted(original), 2**original.case.settings.weight_bit - 1
    layers = [key.removesuffix(".codes") for key in ours if key.endswith(".codes")]
    assert len(layers) == 51
    for layer in layers:
        weight = original.state[f"{layer}.weight"].numpy()
        sizes = SPLITS.get(layer) if original.case.settings.split else None
        parts = np.split(weight, [sizes[0]], axis=1) if sizes else [weight]
        expected = []
        for slot, part in zip(("weight_quantizer", "weight_quantizer_0"), parts):
            alpha, delta, zero_point = (
                original.state[f"{layer}.{slot}.{field}"].numpy() for field in ("alpha", "delta", "zero_point")
            )
            expected.append(np.clip(np.floor(part / delta) + np.where(alpha >= 0, 1, 0) + zero_point, 0, top))
        assert ours[f"{layer}.codes"].dtype == torch.uint8
        np.testing.assert_array_equal(ours[f"{layer}.codes"].numpy(), np.concatenate(expected, axis=1), layer)


def test_a_rounding_variable_of_zero_rounds_up(original):
    alpha, delta, zero_point = (f"model.conv_in.weight_quantizer.{field}" for field in ("alpha", "delta", "zero_point"))
    state = original.state | {alpha: torch.zeros_like(original.state[alpha])}
    up = (state["model.conv_in.weight"] / state[delta]).floor() + 1 + state[zero_point]
    top = 2**original.case.settings.weight_bit - 1
    assert torch.equal(converted(original, state)["model.conv_in.codes"], up.clamp(0, top).to(torch.uint8))


def test_the_rest_is_taken_as_it_is(original):
    ours = converted(original)
    state = original.state
    assert torch.equal(ours["model.norm_out.weight"], state["model.norm_out.weight"])
    for operand, product in zip("qkvw", ("qk_matmul", "qk_matmul", "smv_matmul", "smv_matmul")):
        key = f"act_quantizer_{operand}.delta"
        assert torch.equal(ours[f"model.mid.attn_1.{product}.{key}"], state[f"model.mid.attn_1.{key}"])
    if original.case.settings.split:
        layer = "model.up.1.block.0.nin_shortcut"
        for kind in ("weight", "act"):
            for part, slot in enumerate(("", "_0")):
                found = ours[f"{layer}.{kind}_quantizer.parts.{part}.delta"]
                assert torch.equal(found, state[f"{layer}.{kind}_quantizer{slot}.delta"])


def test_the_file_tells_what_it_can(original):
    s, found = original.case.settings, summarize(original.state)
    assert (found.weight_bits, found.split, found.activations.symmetric) == (s.weight_bit, s.split, s.a_sym)
    assert found.activations.bits is None
    assert {path: layer.split for path, layer in found.layers.items() if layer.split} == (SPLITS if s.split else {})
    assert found.layers["model.conv_in"].shape == (32, 3, 3, 3)
    assert found.parameters == sum(x.numel() for x in original.weights.values())


def test_without_activation_steps(original):
    weights_only = {key: x for key, x in original.state.items() if ".act_quantizer" not in key}
    assert summarize(weights_only).activations is None


def layer_state(weight, bits, range_search):
    quantizer = UniformAffineQuantizer.fit(weight, QuantSpec(bits, per_channel=True, range_search=range_search))
    name = "model.fc.weight_quantizer"
    return {
        "model.fc.weight": weight,
        f"{name}.alpha": torch.zeros_like(weight),
        f"{name}.delta": quantizer.delta.detach(),
        f"{name}.zero_point": quantizer.zero_point,
    }


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("range_search", ["max", "max_scale", "minmax"])
def test_bits_show_in_the_steps(bits, range_search):
    weight = torch.randn(9, 40, generator=torch.Generator().manual_seed(0))
    weight[0] = weight[0].abs() + 1  # zero points of such channels exceed the codes
    weight[1] = -weight[1].abs() - 1
    weight[2] = 0.5  # no range at all
    assert summarize(layer_state(weight, bits, range_search)).weight_bits == bits


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_bits_show_in_the_steps_of_shrunk_ranges(bits):
    weight = torch.randn(64, 200, generator=torch.Generator().manual_seed(0))
    assert summarize(layer_state(weight, bits, "mse")).weight_bits == bits


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("factor", [1 - 1e-6, 1 + 1e-6])
def test_bits_show_in_steps_that_are_rounded_otherwise(bits, factor):
    state = layer_state(torch.randn(9, 40, generator=torch.Generator().manual_seed(0)), bits, "max")
    state["model.fc.weight_quantizer.delta"] *= factor
    assert summarize(state).weight_bits == bits


@pytest.mark.parametrize("factor", [0.25, 4])
def test_one_channel_of_another_range_changes_nothing(factor):
    state = layer_state(torch.randn(9, 40, generator=torch.Generator().manual_seed(0)), 4, "max")
    state["model.fc.weight_quantizer.delta"][3] *= factor
    assert summarize(state).weight_bits == 4


@pytest.mark.parametrize("factor", [0.001, 1000, torch.nan])
def test_steps_of_no_bit_width_are_refused(factor):
    state = layer_state(torch.randn(4, 9), 4, "max")
    state["model.fc.weight_quantizer.delta"] *= factor
    with pytest.raises(ValueError, match="fits no bit width"):
        summarize(state)


@pytest.mark.parametrize("field", ["alpha", "delta", "zero_point"])
@pytest.mark.parametrize("slot", ["weight_quantizer", "weight_quantizer_0"])
def test_an_incomplete_layer_is_named(slot, field):
    state = dict(original_checkpoint(W4A8_SPLIT).state)
    key = f"model.up.1.block.0.nin_shortcut.{slot}.{field}"
    del state[key]
    with pytest.raises(ValueError, match=f"'{key}' is missing"):
        summarize(state)


def test_a_temporary_file_of_an_unfinished_calibration_says_so():
    state = {
        key: x for key, x in original_checkpoint(W8A8).state.items() if not key.endswith((".delta", ".zero_point"))
    }
    with pytest.raises(ValueError, match=r"unfinished calibration.*finished run saved"):
        summarize(state)


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("weight_quantizer.alpha", (32,)),
        ("weight_quantizer.alpha", (32, 3, 3)),
        ("weight_quantizer.alpha", (32, 2, 3, 3)),
        ("weight_quantizer.alpha", ()),
        ("weight", (32,)),
        ("weight", ()),
        ("weight_quantizer.delta", (32,)),
        ("weight_quantizer.delta", (5, 1, 1, 1)),
        ("weight_quantizer.zero_point", ()),
    ],
)
def test_tensors_of_another_shape_are_refused(key, shape):
    state = original_checkpoint(W8A8).state | {f"model.conv_in.{key}": torch.ones(shape)}
    with pytest.raises(ValueError, match=r"'model.conv_in' do not fit"):
        summarize(state)


def test_full_precision_weights_are_not_calibrated(original):
    assert is_original(original.state)
    assert not is_original(original.weights)
