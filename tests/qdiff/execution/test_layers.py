"""Executed layers are the simulated ones on the same input, leaf by leaf."""

import pytest
import torch
from torch import nn

from qdiff.execution.layers import FloatLayer, IntegerLayer
from qdiff.functional import relative_squared_error
from qdiff.integers import act_integers, weight_integers
from qdiff.phases import per_phase, set_phase
from qdiff.quant_layer import QuantModule
from tests.qdiff.execution.layers import act_quantizer, assert_close, between_ties, quantized

LAYERS = {
    "3x3": (lambda: nn.Conv2d(6, 5, 3, padding=1), (2, 6, 7, 8)),
    "3x3 of images": (lambda: nn.Conv2d(3, 32, 3, padding=1), (2, 3, 8, 8)),
    "stride 2": (lambda: nn.Conv2d(6, 5, 3, stride=2), (2, 6, 9, 9)),
    "stride 2, padded": (lambda: nn.Conv2d(6, 5, 3, stride=2, padding=1), (2, 6, 8, 8)),
    "1x1": (lambda: nn.Conv2d(6, 5, 1), (2, 6, 7, 8)),
    "no bias": (lambda: nn.Conv2d(6, 5, 3, padding=1, bias=False), (2, 6, 7, 8)),
    "dilated": (lambda: nn.Conv2d(6, 5, 3, padding=2, dilation=2), (2, 6, 9, 9)),
    "same, uneven": (lambda: nn.Conv2d(6, 5, (3, 4), padding="same"), (2, 6, 7, 8)),
    "1-D": (lambda: nn.Conv1d(6, 5, 1), (2, 6, 9)),
    "1-D, padded": (lambda: nn.Conv1d(6, 5, 3, stride=2, padding=1), (2, 6, 9)),
    "linear": (lambda: nn.Linear(6, 5), (4, 6)),
    "3x3, one pixel": (lambda: nn.Conv2d(6, 5, 3, padding=1), (1, 6, 1, 1)),
    "1x1, padded": (lambda: nn.Conv2d(6, 5, 1, padding=1), (2, 6, 7, 8)),
    "1x1, stride 2": (lambda: nn.Conv2d(6, 5, 1, stride=2), (2, 6, 7, 8)),
    "1x1, one channel": (lambda: nn.Conv2d(1, 1, 1), (1, 1, 4, 4)),
    "1-D, one token": (lambda: nn.Conv1d(6, 5, 1), (1, 6, 1)),
    "linear, one sample": (lambda: nn.Linear(6, 5), (1, 6)),
    "linear, one channel": (lambda: nn.Linear(1, 1), (1, 1)),
    "linear, tokens": (lambda: nn.Linear(6, 5, bias=False), (2, 7, 6)),
}
ACTS = {
    "8 bits": act_quantizer(0.02, 31, 8),
    "8 bits from zero": act_quantizer(0.02, 0, 8),
    "8 bits symmetric": act_quantizer(0.02, 0, 8, symmetric=True),
    "6 bits": act_quantizer(0.1, 40, 6),
    "4 bits": act_quantizer(0.4, 7, 4),
}


def executed(layer: QuantModule) -> IntegerLayer:
    return IntegerLayer(layer, weight_integers(layer))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("weight_bits", [4, 8])
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_the_simulated_one(name, act, weight_bits):
    make, shape = LAYERS[name]
    layer = quantized(make(), [ACTS[act]], weight_bits=weight_bits)
    x = between_ties(ACTS[act], shape)
    found, wanted = executed(layer)(x), layer(x)
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    assert_close(found, wanted)
    assert any(w.shift.any() for w in weight_integers(layer)) == (weight_bits == 8)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_outputs_are_channels_last_whatever_the_input_is(layout):
    layer = quantized(nn.Conv2d(6, 5, 3, padding=1), [ACTS["8 bits"]])
    x = between_ties(ACTS["8 bits"], (2, 6, 7, 8)).contiguous(memory_format=layout)
    y = executed(layer)(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_close(y, layer(x))


@pytest.mark.parametrize("weight_bits", [4, 8])
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.Conv2d(10, 5, 1), (2, 10, 7, 8)),
        (lambda: nn.Conv2d(10, 5, 3, padding=1), (2, 10, 7, 8)),
        (lambda: nn.Linear(10, 5), (4, 10)),
    ],
)
def test_slices_of_a_split_layer_are_added(make, shape, weight_bits):
    acts = [ACTS["8 bits"], act_quantizer(0.31, 100, 8)]
    layer = quantized(make(), acts, weight_bits=weight_bits, split=(6, 4))
    x = torch.cat([between_ties(q, (shape[0], c, *shape[2:]), seed=c) for q, c in zip(acts, (6, 4))], dim=1)
    for layout in [x, x.contiguous(memory_format=torch.channels_last)] if x.ndim == 4 else [x]:
        assert_close(executed(layer)(layout), layer(layout))


@pytest.mark.parametrize("zero_point", [-42, 300])
def test_a_range_without_zero_is_that_of_the_refitted_quantizer(zero_point):
    q = act_quantizer(0.02, zero_point, 8)
    integers = act_integers(q)
    layer = quantized(nn.Conv2d(6, 5, 3, padding=1), [q])
    refitted = act_quantizer(integers.scale, integers.zero_point, 8)
    x = between_ties(refitted, (2, 6, 7, 8))
    assert_close(executed(layer)(x), quantized(nn.Conv2d(6, 5, 3, padding=1), [refitted])(x))


def test_groups():
    layer = quantized(nn.Conv2d(6, 4, 3, padding=1, groups=2), [ACTS["8 bits"]])
    x = between_ties(ACTS["8 bits"], (2, 6, 7, 8))
    assert_close(executed(layer)(x), layer(x))


@pytest.mark.parametrize("weight_bits", [4, 8])
@pytest.mark.parametrize("split", [None, (6, 4)])
def test_phases_share_the_weights(split, weight_bits):
    phases = [[ACTS["8 bits"]] * 2, [ACTS["4 bits"]] * 2, [ACTS["8 bits from zero"]] * 2]
    layer = quantized(nn.Conv2d(10, 5, 3, padding=1), *phases, weight_bits=weight_bits, split=split)
    found = executed(layer)
    alone = executed(quantized(nn.Conv2d(10, 5, 3, padding=1), phases[0], weight_bits=weight_bits, split=split))
    assert found.nbytes == alone.nbytes
    for phase, acts in enumerate(phases):
        set_phase([*per_phase(layer), *per_phase(found)], phase)
        x = between_ties(acts[0], (2, 10, 7, 8), seed=phase)
        assert_close(found(x), layer(x))


def test_half_precision_stays_half_precision():
    layer = quantized(nn.Conv2d(6, 5, 3, padding=1), [ACTS["8 bits"]])
    x = between_ties(ACTS["8 bits"], (2, 6, 7, 8)).bfloat16()
    found = executed(layer)
    assert found(x).dtype == torch.bfloat16
    assert torch.equal(found(x), found(x.float()).bfloat16())


@pytest.mark.parametrize("weight_bits", [4, 8])
@pytest.mark.parametrize("acts", [[], [[act_quantizer(1e-4, 30000, 16)] * 2]])
@pytest.mark.parametrize("split", [None, (2, 4)])
def test_a_layer_in_floating_point_is_the_simulated_one_exactly(split, acts, weight_bits):
    layer = quantized(nn.Conv2d(6, 5, 3, padding=1), *acts, weight_bits=weight_bits, split=split)
    x = torch.randn(2, 6, 7, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(FloatLayer(layer, weight_integers(layer), "because", torch.float32)(x), layer(x))
    coarse = FloatLayer(layer, weight_integers(layer), "because", torch.bfloat16)(x)
    assert coarse.dtype == x.dtype and relative_squared_error(coarse, layer(x)) < (2**-8) ** 2  # bfloat16 has 8 bits


def test_an_executed_layer_takes_a_byte_per_weight():
    layer = quantized(nn.Conv2d(64, 64, 3, padding=1), [ACTS["8 bits"]])
    fp32 = layer.fp_weight.nbytes
    assert executed(layer).nbytes < 0.26 * fp32
    assert FloatLayer(layer, weight_integers(layer), "because", torch.float32).nbytes < 0.26 * fp32
