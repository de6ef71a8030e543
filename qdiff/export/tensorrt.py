"""The rules of TensorRT for graphs with QuantizeLinear and DequantizeLinear, checked without it.

They are those of "Working with Quantized Types" in TensorRT's documentation: zero points are 0, activations are int8
with one step size, and weights have one step size per output channel or one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from onnx_ir import Graph, Node, Value

NODES = ("QuantizeLinear", "DequantizeLinear")
OUTPUTS_OF = {"Conv": 0, "Gemm": 0}  # dimension of a weight that holds the output channels; the last one of a MatMul


@dataclass(frozen=True)
class Breach:
    """A node that TensorRT refuses.

    Args:
        node: its name.
        rule: what it breaks.
    """

    node: str
    rule: str


def breaches(graph: "Graph") -> list[Breach]:
    """Return what TensorRT refuses of a graph, in the order of its nodes; nothing where it would build an engine."""
    return [Breach(node.name or "", rule) for node in graph if node.op_type in NODES for rule in _broken(node)]


def _broken(node: "Node") -> Iterator[str]:
    import onnx_ir as ir

    data, scale, zero_point = (*node.inputs, None)[:3]
    quantized = node.outputs[0] if node.op_type == "QuantizeLinear" else data
    if zero_point is not None and _constant(zero_point).any():
        yield "zero points must be 0"
    if quantized is not None and quantized.dtype not in (ir.DataType.INT8, ir.DataType.INT4):
        yield "quantized values must be int8"
    steps = _constant(scale)
    if not (steps > 0).all():
        yield "step sizes must be positive constants"
    if data is not None and data.const_value is None and steps.size > 1:
        yield "activations must have one step size"
    if data is not None and data.const_value is not None and steps.size > 1:
        axis = node.attributes.get_int("axis", 1) % len(data.shape)
        for reader, _ in node.outputs[0].uses():
            if axis != OUTPUTS_OF.get(reader.op_type, len(data.shape) - 1) and reader.op_type != "Transpose":
                yield "weights must have one step size for each output channel"


def _constant(value: "Value | None") -> np.ndarray:
    return np.zeros(1) if value is None or value.const_value is None else value.const_value.numpy().astype(np.float64)
