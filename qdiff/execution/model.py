"""From a calibrated network to one that computes with integers, and what of it does."""

from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from qdiff.errors import UserError
from qdiff.execution.layers import FloatLayer, IntegerLayer
from qdiff.execution.leaf import ExecutedLeaf, bits_of, quantizers_of
from qdiff.execution.machine import LARGEST, check_machine, has_bfloat16, has_vnni
from qdiff.execution.products import IntegerProduct
from qdiff.files.dtypes import dtype_name
from qdiff.integers import ActIntegers, WeightIntegers, act_integers, weight_integers
from qdiff.quant_block import QuantProduct
from qdiff.quant_layer import PackedModule, Quantizer, QuantLeaf, QuantModule
from qdiff.quant_model import QuantModel

SATURATES = "its sums would saturate on a processor without VNNI"


def execute_integers(model: QuantModel) -> QuantModel:
    """Make the layers of a calibrated network compute with integers, in place; codes and float weights are freed.

    Layers whose inputs are quantized to at most 8 bits multiply uint8 by int8 and add up in int32, which oneDNN does;
    the results are those of the quantized layer but for rounding. Ranges of inputs without zero, which integers cannot
    express, are widened to contain it (see `qdiff.integers.act_integers`). `executed_leaves` tells what stays in
    floating point. Where no activations are quantized, layers compute in bfloat16 if the processor can. To load a file
    without ever holding float weights, load it with `low_memory`.

    Args:
        model: calibrated, on the CPU. It can be called as before; it cannot be saved or calibrated further.

    Returns:
        `model`.

    Raises:
        UserError: the processor or this build of PyTorch cannot compute with integers, or the network is on a GPU.
        ValueError: the calibration of `model` is not finished.
    """
    check_machine()
    layers = model.layers()
    if device := next((x.device for x in model.buffers() if not x.is_cpu), None):
        raise UserError(f"integers are computed on the CPU, the network is on {device}: use --device cpu")
    if learning := next((path for path, layer in layers.items() if layer.rounding is not None), None):
        raise ValueError(f"the rounding of {learning} is still being learned")
    for site in model.sites():
        _ = site.calibrated  # raises if it is not
    dtype = torch.bfloat16 if model.policy.act is None and has_bfloat16() else torch.float32
    for path, leaf in model.leaves().items():
        if execute := EXECUTE.get(type(leaf)):
            model.replace_leaf(path, execute(leaf, dtype))
    return model


def _layer(layer: QuantModule, dtype: torch.dtype) -> ExecutedLeaf:
    weights = weight_integers(layer)
    reason = _why_float(layer, weights)
    return FloatLayer(layer, weights, reason, dtype) if reason else IntegerLayer(layer, weights)


def _why_float(layer: QuantModule, weights: list[WeightIntegers]) -> str:
    """Return why a layer has to compute in floating point; empty if it can compute with integers."""
    if not (phases := quantizers_of(layer.act_quantizer)):
        return "its input is not quantized"
    if (bits := bits_of(phases)) > 8:
        return f"its input has {bits} bits"
    if layer.operation.groups > 1 and any(w.shift.any() for w in weights):
        return "weights of 8 asymmetric bits in groups"
    if not has_vnni() and max(_largest(w.values) for w in weights) > LARGEST:
        return SATURATES
    return ""


def _largest(values: Tensor) -> int:
    return int(values.int().abs().max())


def _product(product: QuantProduct, dtype: torch.dtype) -> QuantLeaf:
    if _why_float_product(product):
        return product
    a, b = (_phases(product, name) for name in product.kind.operands)
    return IntegerProduct(product.kind, [(_integers(x), _integers(y)) for x, y in zip(a, b, strict=True)])


def _why_float_product(product: QuantProduct) -> str:
    """Return why a product has to compute in floating point; empty if it can compute with integers."""
    phases = {name: _phases(product, name) for name in product.kind.operands}
    if name := next((name for name in phases if not phases[name]), None):
        return f"its operand {name} is not quantized"
    name, bits = max(((name, bits_of(of)) for name, of in phases.items()), key=itemgetter(1))
    if bits > 8:
        return f"its operand {name} has {bits} bits"
    if product.kind.contraction is None:
        return "its adapter does not tell what it computes"
    return "" if has_vnni() else SATURATES


def _phases(product: QuantProduct, operand: str) -> list[Quantizer]:
    return quantizers_of(getattr(product, f"act_quantizer_{operand}"))


def _integers(quantizer: Quantizer) -> ActIntegers:
    (whole,) = quantizer.quantizers()
    return act_integers(whole)


# Leaf, by exact type -> what executes it; where it has to compute in floating point, in a dtype
EXECUTE: dict[type, Callable[[Any, torch.dtype], QuantLeaf]] = {
    QuantModule: _layer,
    PackedModule: _layer,
    QuantProduct: _product,
}


@dataclass(frozen=True)
class LeafArithmetic:
    """How a leaf of an executed network computes.

    Args:
        path: in the quantized network.
        arithmetic: "int8", "float32" or "bfloat16".
        reason: why in floating point; empty for integers.
        nbytes: what its weights take, step sizes included; 0 for a product.
    """

    path: str
    arithmetic: str
    reason: str
    nbytes: int


def executed_leaves(model: QuantModel) -> list[LeafArithmetic]:
    """Return how each layer and attention product of an executed network computes, in definition order."""
    return [_described(path, leaf) for path, leaf in model.leaves().items()]


def _described(path: str, leaf: Any) -> LeafArithmetic:
    if isinstance(leaf, ExecutedLeaf):
        return LeafArithmetic(path, dtype_name(leaf.dtype), leaf.reason, leaf.nbytes)
    return LeafArithmetic(path, "float32", _why_float_product(leaf), 0)
