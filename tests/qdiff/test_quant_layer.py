"""Quantizers against the published numbers; quantized layers against ordinary layers with quantized weights."""

import copy
import json
import pickle
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import load_file
from torch import Tensor, nn

from qdiff.policy import QuantSpec
from qdiff.quant_layer import PackedModule, QuantModule, SplitQuantizer, UniformAffineQuantizer, fit_quantizer
from tests.golden_networks import GOLDEN

CASES = json.loads((GOLDEN / "quantizers.json").read_text())
VECTORS = load_file(GOLDEN / "quantizers.safetensors")
WEIGHTS = hnp.arrays("float32", (3, 4, 2, 2), elements=st.floats(-8, 8, width=32)).map(torch.from_numpy)
SPECS = st.builds(
    QuantSpec, st.integers(2, 8), st.booleans(), st.booleans(), st.sampled_from(["minmax", "max", "max_scale"])
)
W4 = QuantSpec(4, per_channel=True, range_search="minmax")


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["id"]))
def test_published_quantizers(case):
    x = VECTORS[f"input.{case['input']}"]
    delta, output = (VECTORS[f"{case['id']}.{name}"] for name in ("delta", "output"))
    zero_point = VECTORS.get(f"{case['id']}.zero_point", torch.zeros_like(delta))
    spec = QuantSpec(
        case["bits"], case["symmetric"], case["channel_wise"], case["scale_method"], always_zero=case["always_zero"]
    )
    quantizer = UniformAffineQuantizer.fit(x, spec)
    one_ulp = 2.0**-23  # the published code divides in double precision
    torch.testing.assert_close(quantizer.delta.detach(), delta, rtol=one_ulp, atol=0)
    assert torch.equal(quantizer.zero_point, zero_point)
    assert torch.equal(quantizer.codes(x) + spec.bounds[0], (output / delta).round().int() + zero_point.int())
    torch.testing.assert_close(quantizer(x), output, rtol=2 * one_ulp, atol=0)
    torch.testing.assert_close(UniformAffineQuantizer(delta, zero_point, spec)(x), output, rtol=0, atol=0)


def test_all_published_quantizers_are_there():
    assert len(CASES) == 103


@given(WEIGHTS, SPECS)
def test_codes_are_in_range_and_quantization_is_idempotent(x, spec):
    quantizer = UniformAffineQuantizer.fit(x, spec)
    codes, once = quantizer.codes(x), quantizer(x)
    assert codes.dtype == torch.int32
    assert codes.min() >= 0
    assert codes.max() < 2**spec.bits
    assert torch.equal(quantizer(once), once)
    assert torch.equal(quantizer.dequantize(codes), once)
    assert torch.equal(quantizer.codes(once), codes)


@given(WEIGHTS, st.integers(2, 8), st.booleans())
def test_what_the_range_holds_errs_by_half_a_step_at_most(x, bits, symmetric):
    quantizer = UniformAffineQuantizer.fit(x, QuantSpec(bits, symmetric, range_search="minmax"))
    error = (quantizer(x).double() - x.double()).abs().max()
    assert error <= quantizer.delta.double() / 2 + 1e-6 * x.abs().max()


@pytest.mark.parametrize("search", ["minmax", "mse", "max", "max_scale"])
@pytest.mark.parametrize("shape", [(5, 7), (5, 3, 3), (5, 3, 2, 2)])
def test_per_channel_is_a_loop_over_channels(search, shape):
    x = gaussian(*shape) * torch.logspace(-2, 1, 5).reshape(5, *[1] * (len(shape) - 1))
    together = UniformAffineQuantizer.fit(x, QuantSpec(4, per_channel=True, range_search=search))
    alone = [UniformAffineQuantizer.fit(row, QuantSpec(4, range_search=search)) for row in x]
    assert together.delta.shape == (5, *[1] * (len(shape) - 1))
    assert torch.equal(together.delta.flatten(), torch.stack([q.delta for q in alone]))
    assert torch.equal(together(x), torch.stack([q(row) for q, row in zip(alone, x)]))


@pytest.mark.parametrize("delta", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_step_is_refused(delta):
    with pytest.raises(ValueError, match="step size"):
        UniformAffineQuantizer(torch.tensor(delta), torch.tensor(0.0), QuantSpec(8))


@pytest.mark.parametrize("zero_point", [0.5, float("nan"), float("inf")])
def test_an_impossible_zero_point_is_refused(zero_point):
    with pytest.raises(ValueError, match="zero point"):
        UniformAffineQuantizer(torch.tensor(1.0), torch.tensor(zero_point), QuantSpec(8))


@pytest.mark.parametrize("search", ["minmax", "mse", "max", "max_scale"])
def test_values_that_are_not_finite_are_refused(search):
    with pytest.raises(ValueError, match="step size"):
        UniformAffineQuantizer.fit(torch.tensor([1.0, float("nan")]), QuantSpec(8, range_search=search))


def test_ranges_of_half_precision_are_searched_in_float32():
    x = (50 * gaussian(1000)).half()
    half, full = (UniformAffineQuantizer.fit(v, QuantSpec(8)) for v in (x, x.float()))
    assert torch.equal(half.delta, full.delta)
    assert torch.equal(half.codes(x), full.codes(x.float()))


def test_a_quantizer_keeps_its_numbers_to_itself():
    delta, zero_point = torch.tensor(0.5), torch.tensor(1.0)
    quantizer = UniformAffineQuantizer(delta, zero_point, QuantSpec(8))
    delta.fill_(9)
    zero_point.fill_(9)
    assert (quantizer.delta.item(), quantizer.zero_point.item()) == (0.5, 1.0)
    assert not quantizer.delta.requires_grad


@pytest.mark.parametrize("spec", [W4, QuantSpec(8, symmetric=True)])
def test_each_slice_has_its_own_quantizer(spec):
    x = torch.cat([gaussian(6, 3, 2, 2), 20 * gaussian(6, 5, 2, 2, seed=1)], dim=1)
    split = fit_quantizer(x, spec, (3, 5))
    below, skip = (UniformAffineQuantizer.fit(part, spec) for part in (x[:, :3], x[:, 3:]))
    assert torch.equal(split(x), torch.cat([below(x[:, :3]), skip(x[:, 3:])], dim=1))
    assert torch.equal(split.codes(x), torch.cat([below.codes(x[:, :3]), skip.codes(x[:, 3:])], dim=1))
    assert torch.equal(split.dequantize(split.codes(x)), split(x))
    assert [q.delta.tolist() for q in split.quantizers()] == [q.delta.tolist() for q in (below, skip)]


def test_a_split_of_other_channels_is_refused():
    split = SplitQuantizer.fit(gaussian(2, 8), W4, (3, 5))
    with pytest.raises(RuntimeError):
        split(gaussian(2, 9))


LAYERS = {
    "conv": (lambda: nn.Conv2d(4, 6, 3), (2, 4, 7, 7)),
    "strided": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 8, 8)),
    "same": (lambda: nn.Conv2d(4, 6, 3, padding="same"), (2, 4, 8, 8)),
    "dilated": (lambda: nn.Conv2d(4, 6, 3, dilation=2, bias=False), (2, 4, 9, 9)),
    "grouped": (lambda: nn.Conv2d(4, 6, (1, 3), groups=2), (2, 4, 5, 5)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), (2, 4, 8)),
    "linear": (lambda: nn.Linear(4, 6), (2, 5, 4)),
    "linear without bias": (lambda: nn.Linear(4, 6, bias=False), (2, 4)),
}


def layer_and_input(name: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    make, shape = LAYERS[name]
    layer = make()
    for i, parameter in enumerate(layer.parameters()):
        parameter.data = gaussian(*parameter.shape, seed=10 + i + seed)
    return layer, gaussian(*shape, seed=seed)


@pytest.mark.parametrize("name", LAYERS)
def test_a_quantized_layer_is_the_layer_with_quantized_weight_and_input(name):
    layer, x = layer_and_input(name)
    quantized = QuantModule(copy.deepcopy(layer), fit_quantizer(layer.weight, W4, None))
    act = UniformAffineQuantizer.fit(x, QuantSpec(8))
    exact = layer(x)
    layer.weight.data = UniformAffineQuantizer.fit(layer.weight, W4)(layer.weight)
    assert torch.equal(quantized(x), layer(x))
    assert not torch.equal(quantized(x), exact)
    quantized.act_quantizer = act
    assert torch.equal(quantized(x), layer(act(x)))
    quantized.quantizing = False
    assert torch.equal(quantized(x), exact)


def test_a_split_layer_is_the_sum_of_two_layers():
    x, layer = gaussian(2, 8, 5, 5), nn.Conv2d(8, 4, 1)
    x[:, 3:] *= 30
    quantized = QuantModule(layer, fit_quantizer(layer.weight, W4, (3, 5)))
    quantized.act_quantizer = SplitQuantizer.fit(x, QuantSpec(4), (3, 5))
    total = layer.bias[:, None, None]
    for part in (slice(0, 3), slice(3, 8)):
        half = nn.Conv2d(part.stop - part.start, 4, 1, bias=False)
        half.weight.data = layer.weight[:, part].detach().clone()
        half = QuantModule(half, fit_quantizer(half.weight, W4, None))
        half.act_quantizer = UniformAffineQuantizer.fit(x[:, part], QuantSpec(4))
        total = total + half(x[:, part])
    torch.testing.assert_close(quantized(x), total)


def test_given_codes_decide_the_weight():
    layer = nn.Linear(5, 3)
    quantizer = fit_quantizer(layer.weight, W4, None)
    codes = torch.arange(15).reshape(3, 5)
    quantized = QuantModule(layer, quantizer, codes)
    assert torch.equal(quantized.codes, codes.to(torch.uint8))
    weight = (codes - quantizer.zero_point) * quantizer.delta
    x = gaussian(2, 5)
    torch.testing.assert_close(quantized(x), nn.functional.linear(x, weight, layer.bias))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_codes_fit_a_byte(bits, symmetric):
    layer = nn.Linear(50, 4)
    spec = QuantSpec(bits, symmetric, per_channel=True, range_search="minmax")
    quantized = QuantModule(layer, fit_quantizer(layer.weight, spec, None))
    assert quantized.codes.dtype == torch.uint8
    assert torch.equal(quantized.weight_quantizer.dequantize(quantized.codes), quantized.dequantized)


@pytest.mark.parametrize("sizes", [None, (1, 3)])
def test_loading_a_state_refreshes_the_cached_weight(sizes):
    quantized = []
    for seed in (0, 1):
        layer, x = layer_and_input("strided", seed)
        quantized.append(QuantModule(layer, fit_quantizer(layer.weight, W4, sizes)))
    one, other = quantized
    assert not torch.equal(one(x), other(x))
    assert "dequantized" not in one.state_dict()
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(x), other(x))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
@pytest.mark.parametrize("name", ["strided", "conv1d", "linear"])
def test_copies_are_equal_and_independent(name, duplicate):
    layer, x = layer_and_input(name)
    quantized = QuantModule(layer, fit_quantizer(layer.weight, W4, None))
    before = quantized(x)
    twin = duplicate(quantized)
    assert torch.equal(twin(x), before)
    state = {key: value.clone() for key, value in twin.state_dict().items()}
    state["codes"] = 15 - state["codes"]
    twin.load_state_dict(state)
    assert not torch.equal(twin(x), before)
    assert torch.equal(quantized(x), before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_another_dtype_goes_through_the_whole_layer(dtype):
    layer, x = layer_and_input("linear")
    quantized = QuantModule(layer, fit_quantizer(layer.weight, W4, None))
    quantized.act_quantizer = UniformAffineQuantizer.fit(x, QuantSpec(8))
    before = quantized(x)
    quantized.to(dtype)
    after = quantized(x.to(dtype))
    assert after.dtype == dtype
    torch.testing.assert_close(after.float(), before, rtol=0.05, atol=0.1)
    quantized.load_state_dict(quantized.state_dict())
    assert quantized(x.to(dtype)).dtype == dtype


def test_a_layer_of_half_precision_stays_one():
    layer = nn.Linear(6, 4).bfloat16()
    quantized = QuantModule(layer, fit_quantizer(layer.weight, W4, None))
    assert quantized(gaussian(2, 6).bfloat16()).dtype == torch.bfloat16


def test_codes_from_another_device_stay_on_the_layers():
    layer = nn.Linear(6, 4)
    quantized = QuantModule(layer, fit_quantizer(layer.weight, W4, None))
    quantized.to("meta")
    quantized.set_codes(torch.zeros(4, 6, dtype=torch.uint8))
    assert {x.device.type for x in (*quantized.buffers(), *quantized.parameters())} == {"meta"}


def test_without_its_weight_a_layer_still_runs_and_is_smaller():
    layer, x = layer_and_input("conv")
    quantized = QuantModule(layer, fit_quantizer(layer.weight, W4, None))
    before = quantized(x)
    quantized.forget_full_precision()
    assert torch.equal(quantized(x), before)
    assert quantized.weight is None
    assert "weight" not in quantized.state_dict()
    with pytest.raises(ValueError, match="integer weights only"):
        _ = quantized.fp_weight


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("name", "sizes"), [("linear", None), ("conv", None), ("conv", (3, 1))])
def test_packed_codes_give_the_same_numbers_in_less_memory(name, sizes, bits):
    layer, x = layer_and_input(name)
    quantizer = fit_quantizer(layer.weight, replace(W4, bits=bits), sizes)
    codes = quantizer.codes(layer.weight)
    expected = QuantModule(layer, quantizer, codes)
    packed = PackedModule(layer, quantizer, codes)
    packed.forget_full_precision()
    assert torch.equal(packed(x), expected(x)) and torch.equal(packed.codes, expected.codes)
    assert sum(b.nbytes for b in packed.buffers() if b.dtype == torch.uint8) == -(
        -codes.numel() * (bits if bits != 3 else 4) // 8
    )
    weights = [b for b in packed.state_dict().values() if b.numel() >= codes.numel()]
    assert weights == [], "nothing as large as the weight is left"
    packed.set_codes(codes ^ 1)
    expected.set_codes(codes ^ 1)
    assert torch.equal(packed(x), expected(x))
    twin = copy.deepcopy(packed).to(torch.bfloat16)
    assert twin(x.bfloat16()).dtype == torch.bfloat16


def test_padding_other_than_zeros_is_refused():
    layer = nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")
    with pytest.raises(ValueError, match="circular"):
        QuantModule(layer, fit_quantizer(layer.weight, W4, None))


@torch.no_grad()
def test_a_corrected_bias_goes_with_the_integer_weights_alone():
    layer, x = nn.Linear(4, 3), torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    expected = layer(x)
    module = QuantModule(layer, UniformAffineQuantizer.fit(layer.weight, QuantSpec(4, per_channel=True)))
    bias = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    for correction in (bias, 2 * bias):
        module.set_bias(correction)
        assert module.bias.dtype == torch.float32 and not module.bias.requires_grad
        assert torch.equal(module(x), nn.functional.linear(x, module.quantized_weight(), correction.float()))
        module.quantizing = False
        assert torch.equal(module(x), expected), "also after the second correction"
        module.quantizing = True
    module.forget_full_precision()
    assert module.fp_bias is None and torch.equal(module.bias, 2 * bias.float())


def test_a_layer_without_bias_cannot_have_it_corrected():
    layer = nn.Linear(4, 3, bias=False)
    module = QuantModule(layer, UniformAffineQuantizer.fit(layer.weight, QuantSpec(4, per_channel=True)))
    with pytest.raises(ValueError, match="a layer without bias cannot have it replaced"):
        module.set_bias(torch.zeros(3))
