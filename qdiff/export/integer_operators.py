"""Operators of ONNX that compute in integers, for engines that do not find them themselves."""

from typing import TYPE_CHECKING

import numpy as np

from qdiff.export.weights import weights

if TYPE_CHECKING:
    from onnx_ir import Graph, Node, Value


LAYERS = ("Gemm", "MatMul")


def with_integer_operators(graph: "Graph") -> int:
    """Compute linear layers of dequantized tensors in integers, in place; returns how many.

    Accumulators are exact, and one multiplication by the step sizes follows. ONNX Runtime computes a layer in integers
    by itself only where its output is quantized too. Convolutions are left to it: by ConvInteger they would take three
    times as long as in float32.
    """
    changed = 0
    for node in list(graph):
        act, weight = (_dequantized(x) for x in (*node.inputs, None, None)[:2])
        if node.op_type not in LAYERS or act is None or weight is None or weight.inputs[0].const_value is None:
            continue
        integers = _product(graph, node, act, weight.inputs[0])
        _replace(graph, node, integers, act.inputs[1], weight.inputs[1])
        changed += 1
    return changed


def with_zero_points(graph: "Graph") -> None:
    """State the zero points of int8 weights, which are 0: ONNX Runtime 1.23 takes unstated ones for uint8."""
    for node, weight in weights(graph):
        if len(node.inputs) == 2:
            scale = node.inputs[1]
            zeros = np.zeros(scale.const_value.shape, weight.const_value.numpy().dtype)
            node.resize_inputs(3)
            node.replace_input_with(2, _constant(graph, f"{node.outputs[0].name}.zero_point", zeros))


def _dequantized(x: "Value | None") -> "Node | None":
    """Return the DequantizeLinear that a value comes from, through the transposition of a weight."""
    node = x.producer() if x is not None else None
    if node is not None and node.op_type == "Transpose":
        node = node.inputs[0].producer()
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _unsigned(graph: "Graph", node: "Node", act: "Node") -> list["Value"]:
    """Return the codes of an activation and their zero point as uint8, the type that engines take first."""
    import onnx_ir as ir

    codes, zero_point = act.inputs[0], act.inputs[2]
    if codes.dtype == ir.DataType.UINT8:
        return [codes, zero_point]
    x, scale = codes.producer().inputs[:2]
    prefix = node.outputs[0].name  # names of nodes may be missing
    moved = (zero_point.const_value.numpy().astype(np.int16) + 128).astype(np.uint8)
    zero_point = _constant(graph, f"{prefix}.zero_point", moved)
    quantize = ir.node("QuantizeLinear", [x, scale, zero_point])
    quantize.outputs[0].name = f"{prefix}.codes"  # or it gets one that another value may have
    quantize.outputs[0].shape, quantize.outputs[0].type = codes.shape, ir.TensorType(ir.DataType.UINT8)
    graph.insert_before(node, quantize)
    return [quantize.outputs[0], zero_point]


def _product(graph: "Graph", node: "Node", act: "Node", weight: "Value") -> "Node":
    import onnx_ir as ir

    codes, zero_point = _unsigned(graph, node, act)
    values = np.ascontiguousarray(weight.const_value.numpy().T)  # (inputs, outputs)
    weight_name = f"{node.outputs[0].name}.weight"
    return ir.node("MatMulInteger", [codes, _constant(graph, weight_name, values), zero_point])


def _replace(graph: "Graph", node: "Node", integers: "Node", act_scale: "Value", weight_scale: "Value") -> None:
    """Put the integer operator, its step sizes and the bias in the place of a layer."""
    import onnx_ir as ir

    y, prefix = node.outputs[0], node.outputs[0].name
    steps = act_scale.const_value.numpy() * weight_scale.const_value.numpy()
    integers.outputs[0].type, integers.outputs[0].shape = ir.TensorType(ir.DataType.INT32), y.shape
    cast = ir.node("Cast", integers.outputs, attributes={"to": ir.DataType.FLOAT})
    scaled = ir.node("Mul", [cast.outputs[0], _constant(graph, f"{prefix}.steps", steps)])
    nodes = [integers, cast, scaled]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = node.inputs[2].const_value.numpy()
        nodes.append(ir.node("Add", [scaled.outputs[0], _constant(graph, f"{prefix}.bias", bias)]))
    for i, new in enumerate(nodes):
        new.outputs[0].name = f"{prefix}.{i}"
        graph.insert_before(node, new)
    last = nodes[-1].outputs[0]
    last.shape, last.type = y.shape, y.type
    y.replace_all_uses_with(last, replace_graph_outputs=True)
    last.name, y.name = y.name, None
    graph.remove(node, safe=True)


def _constant(graph: "Graph", name: str, values: np.ndarray) -> "Value":
    import onnx_ir as ir

    tensor = ir.Tensor(values, name=name)
    value = ir.Value(name=name, shape=ir.Shape(values.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
