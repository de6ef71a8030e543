"""Weights of an exported graph, in 8 bits or 4."""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from onnx_ir import Graph, Node, Value

UINT4_MAX = 15


def weights(graph: "Graph") -> list[tuple["Node", "Value"]]:
    """Return the DequantizeLinear nodes of constants, each with its constant."""
    nodes = (node for node in graph if node.op_type == "DequantizeLinear")
    return [(node, x) for node in nodes if (x := node.inputs[0]) is not None and x.const_value is not None]


def pack_weights(graph: "Graph") -> int:
    """Store int8 weights of at most 16 codes, 0 among them in each channel, as uint4 with zero points.

    Returns:
        how many weights are stored in 4 bits.
    """
    import onnx_ir as ir

    packed = 0
    for node, weight in weights(graph):
        values = weight.const_value.numpy().astype(np.int16)
        axis = node.attributes.get_int("axis", 1)
        rows = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
        zero = np.minimum(rows.min(1), 0)
        if weight.dtype != ir.DataType.INT8 or len(node.inputs) > 2 or len(weight.uses()) > 1:
            continue
        if (np.maximum(rows.max(1), 0) - zero).max() > UINT4_MAX or zero.min() < -UINT4_MAX:
            continue
        shape = [-1 if i == axis else 1 for i in range(values.ndim)]
        name = weight.name
        codes = _initializer(graph, f"{name}.codes", values - zero.reshape(shape), ir.DataType.UINT4)
        zero_point = _initializer(graph, f"{name}.zero_point", -zero, ir.DataType.UINT4)
        _replace(graph, node, weight, [codes, node.inputs[1], zero_point])
        packed += 1
    return packed


def widen_weights(graph: "Graph") -> int:
    """Undo `pack_weights`, for engines that compute with int8 weights only; returns how many weights had 4 bits."""
    import onnx_ir as ir

    widened = 0
    for node, weight in weights(graph):
        if weight.dtype != ir.DataType.UINT4:
            continue
        codes = weight.const_value.numpy().astype(np.int8)
        zero = node.inputs[2].const_value.numpy().astype(np.int8)
        axis = node.attributes.get_int("axis", 1)
        shape = [-1 if i == axis else 1 for i in range(codes.ndim)]
        values = _initializer(graph, f"{weight.name}.values", codes - zero.reshape(shape), ir.DataType.INT8)
        _replace(graph, node, weight, [values, node.inputs[1]])
        widened += 1
    return widened


def _initializer(graph: "Graph", name: str, values: np.ndarray, dtype: Any) -> "Value":
    import onnx_ir as ir

    tensor = ir.Tensor(values.astype(dtype.numpy()), dtype=dtype, name=name)
    value = ir.Value(name=name, shape=ir.Shape(values.shape), type=ir.TensorType(dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def _replace(graph: "Graph", node: "Node", weight: "Value", inputs: list["Value"]) -> None:
    """Give a DequantizeLinear other inputs, and drop the weight that it had."""
    import onnx_ir as ir

    other = ir.node("DequantizeLinear", inputs, attributes={"axis": node.attributes["axis"].as_int()})
    graph.insert_before(node, other)
    node.outputs[0].replace_all_uses_with(other.outputs[0])
    other.outputs[0].shape, other.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
    before = [x for x in node.inputs if x is not None]
    graph.remove(node, safe=True)
    for value in before:
        if not value.uses() and value.name in graph.initializers:
            graph.initializers.pop(value.name)
