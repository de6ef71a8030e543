"""Attention products with integers are the simulated ones, for every product that the adapters know."""

import pytest
import torch
from torch import Tensor

from qdiff.adapters import ProductKind, adapter_of
from qdiff.execution import products
from qdiff.execution.products import IntegerProduct
from qdiff.integers import act_integers
from qdiff.phases import per_phase, set_phase
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


def operands(kind: ProductKind, acts: tuple[UniformAffineQuantizer, ...], **sizes: int) -> list[Tensor]:
    assert kind.contraction
    shapes = [
        [(SIZES | sizes)[letter] for letter in term] for term in kind.contraction.equation.split("->")[0].split(",")
    ]
    return [between_ties(q, shape, seed) for seed, (q, shape) in enumerate(zip(acts, shapes))]


@torch.no_grad()
@pytest.mark.parametrize("acts", ACTS)
@pytest.mark.parametrize("sizes", [{}, {"j": 1}, {"i": 1}, {"b": 1, "i": 1, "j": 1}], ids=str)
@pytest.mark.parametrize("name", KINDS)
def test_a_product_is_the_simulated_one(name, sizes, acts):
    product = simulated(*KINDS[name], ACTS[acts])
    found = IntegerProduct(product.kind, [(act_integers(ACTS[acts][0]), act_integers(ACTS[acts][1]))])
    a, b = operands(product.kind, ACTS[acts], **sizes)
    assert_close(found(a, b), product(a, b))
    assert_close(found(a.mT.contiguous().mT, b.mT.contiguous().mT), product(a, b))


@pytest.mark.parametrize("block", [1, 20, 50, 200])
def test_blocks_are_every_row_once(block, monkeypatch):
    monkeypatch.setattr(products, "BLOCK", block)
    seen = torch.zeros(5, 7, dtype=torch.int64)
    for entries, rows in products.blocks_of(5, 7, 11):
        seen[entries, rows] += 1
        assert seen[entries, rows].numel() * 11 <= max(block, 11)
    assert (seen == 1).all()


@torch.no_grad()
@pytest.mark.parametrize("name", KINDS)
def test_products_in_blocks_are_those_at_once(name, monkeypatch):
    _, kind = KINDS[name]
    acts = ACTS["8 bits"]
    product = IntegerProduct(kind, [(act_integers(acts[0]), act_integers(acts[1]))])
    a, b = operands(kind, acts)
    wanted = product(a, b)
    for block in (1, 40, 100, 400):
        monkeypatch.setattr(products, "BLOCK", block)
        assert torch.equal(product(a, b), wanted)


@torch.no_grad()
def test_phases_of_a_product():
    type_, kind = KINDS["ddim ValueProduct"]
    pairs = [ACTS["8 bits"], ACTS["symmetric, 5 bits"]]
    found = IntegerProduct(kind, [(act_integers(a), act_integers(b)) for a, b in pairs])
    for phase, acts in enumerate(pairs):
        set_phase(per_phase(found), phase)
        assert_close(found(*operands(kind, acts)), simulated(type_, kind, acts)(*operands(kind, acts)))


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
