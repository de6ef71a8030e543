"""Integers of weights and activations are the values of the quantizers."""

import pytest
import torch
from torch import nn

from qdiff.integers import act_integers, weight_integers
from qdiff.policy import QuantSpec
from qdiff.quant_layer import QuantModule, UniformAffineQuantizer, fit_quantizer


def quantizer(delta: float, zero_point: float, bits: int = 8, symmetric: bool = False) -> UniformAffineQuantizer:
    return UniformAffineQuantizer(torch.tensor(delta), torch.tensor(zero_point), QuantSpec(bits, symmetric=symmetric))


def dequantized(integers, x: torch.Tensor) -> torch.Tensor:
    codes = (x / integers.scale).round() + integers.zero_point
    return integers.scale * (codes.clamp(0, integers.top) - integers.zero_point)


@pytest.mark.parametrize(
    ("zero_point", "bits", "symmetric"), [(31, 8, False), (0, 8, False), (7, 4, False), (0, 8, True)]
)
def test_activations_whose_zero_point_is_a_code_are_those_of_the_quantizer(zero_point, bits, symmetric):
    q = quantizer(0.25, zero_point, bits, symmetric)
    x = torch.linspace(-60, 80, 1001)
    found = act_integers(q)
    assert torch.equal(dequantized(found, x), q(x))
    assert not found.refitted and 0 <= found.zero_point <= found.top == 2**bits - 1


@pytest.mark.parametrize("zero_point", [-42, 300])
def test_a_range_without_zero_is_widened_to_contain_it(zero_point):
    q = quantizer(0.01, zero_point)
    ends = (torch.tensor([0.0, 255.0]) - zero_point) * 0.01
    x = torch.linspace(float(ends[0]), float(ends[1]), 1001)
    found = act_integers(q)
    assert found.refitted and found.zero_point in (0, 255)
    assert (dequantized(found, x) - x).abs().max() <= found.scale / 2 + 1e-6
    assert found.scale < 0.01 * 1.2


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("split", [None, (3, 5)])
@pytest.mark.parametrize("offset", [0.0, 1.5])
def test_weights_are_those_of_the_layer(bits, symmetric, split, offset):
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 6, 3)
    layer.weight.data += offset * layer.weight.detach().abs().max() * (torch.arange(6) % 2).view(-1, 1, 1, 1)
    spec = QuantSpec(bits, symmetric=symmetric, per_channel=True, range_search="minmax")
    quantized = QuantModule(layer, fit_quantizer(layer.weight, spec, split))
    parts = weight_integers(quantized)
    values = [p.scale.view(-1, 1, 1, 1) * (p.values.float() + p.shift.view(-1, 1, 1, 1)) for p in parts]
    assert torch.equal(torch.cat(values, 1), quantized.dequantized)
    shifted = any(bool(p.shift.any()) for p in parts)
    assert shifted == (bits == 8 and not symmetric)
