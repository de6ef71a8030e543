"""Tensors that an exported graph joins: no copies of them that an engine can do without."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnx_ir import Graph, Node, Value

ELEMENTWISE = {"Sigmoid", "Mul", "Add", "Clip", "QuantizeLinear", "DequantizeLinear"}


def fold_splits(graph: "Graph") -> int:
    """Let the readers of Split(Concat(a, b)) read a and b where the pieces are the same; returns how many there were.

    A split shortcut takes apart what the network has just put together; engines would copy both.
    """
    folded = 0
    for node in list(graph):
        joined = node.inputs[0].producer() if node.op_type == "Split" and node.inputs[0] is not None else None
        if joined is None or joined.op_type != "Concat" or not _same_pieces(node, joined):
            continue
        for piece, part in zip(node.outputs, joined.inputs):
            piece.replace_all_uses_with(part)
        graph.remove(node, safe=True)
        folded += 1
    return folded


def _same_pieces(split: "Node", joined: "Node") -> bool:
    axis = joined.attributes["axis"].as_int()
    parts = [x.shape for x in joined.inputs if x is not None]
    if split.attributes.get_int("axis", 0) != axis or None in parts:
        return False
    return [piece.shape and piece.shape[axis] for piece in split.outputs] == [shape[axis] for shape in parts]


def push_concats(graph: "Graph") -> int:
    """Apply elementwise operators to the parts of joined channels instead of to the whole; returns how many.

    What is quantized in the end is joined as bytes.
    """
    pushed = 0
    for node in list(graph):
        if node.op_type not in ELEMENTWISE or len(node.outputs[0].shape or ()) < 3:
            continue
        joins = [concat_of(x) for x in node.inputs if x is not None and not _is_number(x)]
        first = joins[0] if joins else None
        if first is None or any(_sizes(join) != _sizes(first) for join in joins):
            continue
        graph.insert_before(node, _by_parts(node, first))
        graph.remove(node, safe=True)
        for join in joins:
            remove_unused(graph, join)
        pushed += 1
    return pushed


def _by_parts(node: "Node", first: "Node") -> list["Node"]:
    """Return the operator for each part and the Concat of their results, which takes the place of its own."""
    import onnx_ir as ir

    y = node.outputs[0]
    parts = []
    for i, like in enumerate(first.inputs):
        inputs = [x if x is None or _is_number(x) else x.producer().inputs[i] for x in node.inputs]
        parts.append(ir.node(node.op_type, inputs, attributes=node.attributes))
        out = parts[-1].outputs[0]
        out.name, out.shape, out.type = f"{y.name}.part{i}", like.shape, y.type
    joined = ir.node("Concat", [part.outputs[0] for part in parts], attributes={"axis": 1})
    out = joined.outputs[0]
    out.name, out.shape, out.type = f"{y.name}.joined", y.shape, y.type
    y.replace_all_uses_with(out, replace_graph_outputs=True)
    return [*parts, joined]


def concat_of(x: "Value | None") -> "Node | None":
    """Return the Concat of channels that a value comes from."""
    node = x.producer() if x is not None else None
    return node if node is not None and node.op_type == "Concat" and node.attributes["axis"].as_int() == 1 else None


def _sizes(join: "Node | None") -> list[Any] | None:
    return None if join is None else [x.shape[1] for x in join.inputs]


def _is_number(x: "Value") -> bool:
    return x.const_value is not None and x.const_value.size == 1


def remove_unused(graph: "Graph", node: "Node | None") -> None:
    """Remove a node whose outputs nothing reads, and those that it alone read."""
    if node is None or node.graph is not graph or any(y.uses() or y.is_graph_output() for y in node.outputs):
        return
    before = [x.producer() for x in node.inputs if x is not None]
    graph.remove(node, safe=True)
    for other in before:
        remove_unused(graph, other)
