"""Attention products with integers are the simulated ones, for every product that the adapters know."""

import pytest
import torch
from torch import Tensor

from qdiff.adapters import ProductKind, adapter_of
from qdiff.execution.products import IntegerProduct
from qdiff.integers import act_integers
from qdiff.quant_block import QuantProduct
from qdiff.quant_layer import UniformAffineQuantizer
from tests.qdiff.execution.layers import act_quantizer, assert_close, between_ties

SIZES = {"b": 3, "i": 7, "j": 11, "c": 16}
KINDS = {
    f"{family} {type.__name__}": (type, kind)
    for family in ("ddim", "ldm")
    for type, kind in adapter_of(family).products.items()
}
ACTS = {
    "8 bits": (act_quantizer(0.02, 31, 8), act_quantizer(0.03, 140, 8)),
    "a range from zero": (act_quantizer(0.02, 200, 8), act_quantizer(1 / 255, 0, 8)),
    "symmetric, 5 bits": (act_quantizer(0.02, 0, 8, symmetric=True), act_quantizer(0.2, 9, 5)),
}


def simulated(type_: type, kind: ProductKind, acts: tuple[UniformAffineQuantizer, ...]) -> QuantProduct:
    product = QuantProduct(type_(), kind)
    for name, q in zip(kind.operands, acts):
        setattr(product, f"act_quantizer_{name}", q)
    return product


def operands(kind: ProductKind, acts: tuple[UniformAffineQuantizer, ...]) -> list[Tensor]:
    assert kind.contraction
    shapes = [[SIZES[letter] for letter in term] for term in kind.contraction.equation.split("->")[0].split(",")]
    return [between_ties(q, shape, seed) for seed, (q, shape) in enumerate(zip(acts, shapes))]


@torch.no_grad()
@pytest.mark.parametrize("acts", ACTS)
@pytest.mark.parametrize("name", KINDS)
def test_a_product_is_the_simulated_one(name, acts):
    product = simulated(*KINDS[name], ACTS[acts])
    found = IntegerProduct(product.kind, [(act_integers(ACTS[acts][0]), act_integers(ACTS[acts][1]))])
    a, b = operands(product.kind, ACTS[acts])
    assert_close(found(a, b), product(a, b))
    assert_close(found(a.mT.contiguous().mT, b.mT.contiguous().mT), product(a, b))


@torch.no_grad()
@pytest.mark.parametrize("name", KINDS)
def test_small_attention_weights_lose_nothing(name):
    """The terms of the zero points are a thousand times their sum, and the result is exact."""
    type_, kind = KINDS[name]
    acts = act_quantizer(1.0, 127, 8), act_quantizer(1.0, 0, 8)
    a, b = operands(kind, acts)
    b = (b > 230).float()
    wanted = type_()(acts[0](a).double(), b.double())
    found = IntegerProduct(kind, [(act_integers(acts[0]), act_integers(acts[1]))])(a, b)
    assert torch.equal(found, wanted.float())
