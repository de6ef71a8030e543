"""Leaves in both engines against the simulated ones, on inputs off ties, so that all codes are the same."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from qdiff.adapters import adapter_of
from qdiff.export.leaves import with_exported_leaves
from qdiff.integers import act_integers, weight_integers
from qdiff.quant_layer import PackedModule, UniformAffineQuantizer
from qdiff.quant_model import QuantModel
from tests.qdiff.export.leaf import OneLayer, act, assert_agree, draw, layer_model, off_ties, outputs, product_model

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

PRODUCTS = [(t, kind) for family in ("ddim", "ldm") for t, kind in adapter_of(family).products.items()]
LAYERS = {
    "padded": (lambda: nn.Conv2d(5, 7, 3, padding=1), (3, 5, 6, 6)),
    "strided": (lambda: nn.Conv2d(4, 6, 3, stride=2), (3, 4, 7, 7)),
    "strided and padded": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (3, 4, 8, 8)),
    "pointwise": (lambda: nn.Conv2d(6, 9, 1), (3, 6, 5, 5)),
    "one dimension": (lambda: nn.Conv1d(6, 9, 1), (3, 6, 11)),
    "linear": (lambda: nn.Linear(12, 8), (3, 12)),
    "linear without bias": (lambda: nn.Linear(12, 8, bias=False), (3, 12)),
    "linear on tokens": (lambda: nn.Linear(12, 8), (3, 5, 12)),
}
ACTS = {  # none of these ranges is symmetric around zero unless it says so
    "8 bits": act(0.05, 37),
    "6 bits": act(0.2, 11, 6),
    "4 bits": act(0.5, 3, 4),
    "8 bits from zero": act(0.05, 0),
    "8 bits symmetric": act(0.05, 0, 8, symmetric=True),
    "6 bits symmetric": act(0.2, 0, 6, symmetric=True),
}


def seeded(make):
    torch.manual_seed(0)
    return make()


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer(layer):
    make, shape = LAYERS[layer]
    quantizer = ACTS["8 bits"]
    assert_agree(layer_model(seeded(make), [quantizer]), off_ties(shape, quantizer))


@pytest.mark.parametrize("name", ACTS)
@pytest.mark.parametrize("layer", ["padded", "linear on tokens"])
def test_activations(layer, name):
    make, shape = LAYERS[layer]
    assert_agree(layer_model(seeded(make), [ACTS[name]], weight_bits=6), off_ties(shape, ACTS[name]))


@pytest.mark.parametrize("layer", ["padded", "one dimension", "linear", "linear on tokens"])
def test_a_weight_that_leaves_int8_is_shifted(layer):
    make, shape = LAYERS[layer]
    module = seeded(make)
    with torch.no_grad():
        module.weight += 0.9 * module.weight.abs().max()  # nearly all of one sign
    model = layer_model(module, [ACTS["8 bits"]], weight_bits=8, range_search="mse")
    (integers,) = weight_integers(model.layers()["model.layer"])
    assert integers.shift.any()
    assert_agree(model, off_ties(shape, ACTS["8 bits"]))


def test_a_split_layer():
    quantizers = [act(0.05, 37), act(0.21, 90)]
    x = torch.cat([off_ties((3, n, 6, 6), q, seed) for seed, (n, q) in enumerate(zip((4, 7), quantizers))], 1)
    assert_agree(layer_model(seeded(lambda: nn.Conv2d(11, 8, 1)), quantizers, sizes=(4, 7)), x)


def test_a_zero_point_that_is_no_code_is_refitted():
    quantizer = act(0.05, -20)
    model = layer_model(seeded(LAYERS["padded"][0]), [quantizer])
    fitted = act_integers(quantizer)
    assert fitted.refitted
    again = act(fitted.scale, fitted.zero_point)
    same = layer_model(seeded(LAYERS["padded"][0]), [again])
    x = off_ties(LAYERS["padded"][1], again)
    with torch.no_grad():
        wanted = same(x)
    for found in outputs(model, x).values():
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("layer", ["padded", "linear on tokens"])
def test_activations_in_floating_point(layer):
    make, shape = LAYERS[layer]
    assert_agree(layer_model(seeded(make), None), draw(*shape))


def test_activations_of_16_bits_are_not_rounded():
    make, shape = LAYERS["padded"]
    fine = layer_model(seeded(make), [act(1e-4, 30000, 16)])
    x = draw(*shape)
    assert_agree(layer_model(seeded(make), None), x)
    assert isinstance(with_exported_leaves(fine).layer.slices[0].act, nn.Identity)


def test_packed_layers():
    def packed(path: str, layer: nn.Module, split: None) -> PackedModule:
        return PackedModule(layer, UniformAffineQuantizer.fit(layer.weight, plain.policy.weight))

    make, shape = LAYERS["padded"]
    plain = layer_model(seeded(make), [ACTS["8 bits"]])
    model = QuantModel(OneLayer(seeded(make)).eval(), plain.policy, plain.adapter, make_layer=packed)
    model.sites()[0].set(ACTS["8 bits"])
    assert_agree(model, off_ties(shape, ACTS["8 bits"]))


# ---- attention products


SIZES = {"b": 3, "c": 6, "d": 6, "i": 7, "j": 9}


def operands(kind):
    """The shapes of both operands."""
    inputs, _, _ = kind.contraction.equation.partition("->")
    return [tuple(SIZES[index] for index in indices) for indices in inputs.split(",")]


def name(value):
    return f"{value.__module__}.{value.__name__}" if isinstance(value, type) else ""


@pytest.mark.parametrize(("product", "kind"), PRODUCTS, ids=name)
class TestProducts:
    def test_the_contraction_is_what_the_module_computes(self, product, kind):
        a, b = (draw(*shape, seed=i) for i, shape in enumerate(operands(kind)))
        found = torch.einsum(kind.contraction.equation, a, b)
        summed = next(i for i in kind.contraction.equation[:3] if i not in kind.contraction.equation.partition("->")[2])
        if kind.contraction.scaled:
            found *= a.shape[kind.contraction.equation.index(summed)] ** -0.5
        torch.testing.assert_close(found, product()(a, b))

    @pytest.mark.parametrize("names", [("8 bits", "6 bits"), ("8 bits from zero", "8 bits"), ("8 bits symmetric",) * 2])
    def test_integers(self, product, kind, names):
        quantizers = [ACTS[name] for name in names]
        inputs = [off_ties(s, q, i) for i, (s, q) in enumerate(zip(operands(kind), quantizers))]
        model = product_model(product(), kind, dict(zip(kind.operands, quantizers)))
        assert_agree(model, *inputs, tolerance=1e-5)  # of sums whose terms cancel

    def test_one_operand_of_16_bits(self, product, kind):
        quantizers = [ACTS["8 bits"], act(1e-3, 30000, 16)]
        inputs = [off_ties(s, q, i) for i, (s, q) in enumerate(zip(operands(kind), quantizers))]
        model = product_model(product(), kind, dict(zip(kind.operands, quantizers)))
        assert_agree(model, *inputs, tolerance=1e-3)  # which stays in floating point

    def test_a_product_that_is_not_described(self, product, kind):
        quantizers = [ACTS["8 bits"], ACTS["6 bits"]]
        inputs = [off_ties(s, q, i) for i, (s, q) in enumerate(zip(operands(kind), quantizers))]
        model = product_model(product(), replace(kind, contraction=None), dict(zip(kind.operands, quantizers)))
        assert_agree(model, *inputs, tolerance=1e-5)
