"""GroupNorm of an exported graph as a scale and a shift of each channel.

Means of single channels leave the memory layout of convolutions as it is, and engines fuse the one multiplication and
addition with what follows. Variances are mean squares less squared means, so that no pass over the input waits for
another, and what the network joins or adds just before a normalisation need not be written to memory for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qdiff.export.concats import concat_of, remove_unused

if TYPE_CHECKING:
    from onnx_ir import Graph, Node, Value


def lower_norms(graph: "Graph") -> int:
    """Replace GroupNormalization, in place; returns how many there were.

    The parts of an input that is a Concat of channels are normalised one by one, and joined after. A number that is
    added to each channel, as that of the timestep, becomes part of its shift.
    """
    norms = [node for node in graph if node.op_type == "GroupNormalization"]
    known: dict[int, tuple[Value, Value]] = {}
    for node in norms:
        normalised = _Emitter(graph, node, known).normalised()
        normalised.shape, normalised.type = node.outputs[0].shape, node.outputs[0].type
        node.outputs[0].replace_all_uses_with(normalised, replace_graph_outputs=True)
        before = node.inputs[0].producer() if node.inputs[0] is not None else None
        graph.remove(node, safe=True)
        remove_unused(graph, before)
    return len(norms)


@dataclass(frozen=True)
class _Part:
    """Channels of an input: x of shape (B, C, ...), and what is added to them, if anything, of shape (B, C, 1, ...)."""

    x: "Value"
    added: "Value | None" = None


def _part(value: "Value") -> _Part:
    node = value.producer()
    if node is None or node.op_type != "Add":
        return _Part(value)
    for x, added in (node.inputs, reversed(node.inputs)):
        if x.shape == value.shape and added.const_value is None and _is_pixel(added):
            return _Part(x, added)
    return _Part(value)


def _is_pixel(x: "Value") -> bool:
    return x.shape is not None and len(x.shape) > 2 and all(size == 1 for size in x.shape[2:])


class _Emitter:
    """Emits the nodes that take the place of a GroupNormalization, before it."""

    def __init__(self, graph: "Graph", node: "Node", known: dict[int, tuple["Value", "Value"]]):
        self.graph, self.node, self.known = graph, node, known
        self.prefix, self.count = node.outputs[0].name, 0
        x, self.weight, self.bias = node.inputs
        join = concat_of(x)
        self.parts = [_part(value) for value in (join.inputs if join else [x])]
        self.sizes = [part.x.shape[1] for part in self.parts]
        self.pixels = range(2, len(x.shape))
        self.groups = node.attributes["num_groups"].as_int()

    def normalised(self) -> "Value":
        scale, shift = (self.split(y) for y in self.scale_and_shift())
        results = [self.applied(*each) for each in zip(self.parts, scale, shift)]
        return results[0] if len(results) == 1 else self.op("Concat", *results, axis=1)

    def applied(self, part: _Part, scale: "Value", shift: "Value") -> "Value":
        """Return what a part becomes, in its shape."""
        if part.added is not None:
            shift = self.op("Add", shift, self.op("Mul", scale, part.added))
        y = self.op("Add", self.op("Mul", part.x, scale), shift)
        y.shape, y.type = part.x.shape, part.x.type
        return y

    def scale_and_shift(self) -> tuple["Value", "Value"]:
        """Return both, of shape (B, C, 1, ...)."""
        means, squares = zip(*(self.moments(part) for part in self.parts))
        mean, square = self.of_groups(means), self.of_groups(squares)  # (B, groups, 1)
        variance = self.op("Sub", square, self.op("Mul", mean, mean))
        eps = np.float32(self.node.attributes["epsilon"].as_float())
        deviation = self.op("Sqrt", self.op("Add", variance, self.constant(eps)))
        scale = self.op("Div", self.by_group(self.weight), deviation)  # (B, groups, channels of a group)
        shift = self.op("Sub", self.by_group(self.bias), self.op("Mul", mean, scale))
        shape = self.constant(np.array([0, sum(self.sizes), *(1 for _ in self.pixels)]))
        return self.op("Reshape", scale, shape), self.op("Reshape", shift, shape)

    def moments(self, part: _Part) -> tuple["Value", "Value"]:
        """Return means and mean squares of the channels of a part, (B, C)."""
        if id(part.x) not in self.known:  # a skip connection is normalised twice
            self.known[id(part.x)] = self.measured(part.x)
        mean, square = self.known[id(part.x)]
        if part.added is None:
            return mean, square
        e = self.op("Squeeze", part.added, self.constant(np.array(self.pixels)))
        moved = self.op("Add", mean, e)
        return moved, self.op("Add", square, self.op("Mul", e, self.op("Add", mean, moved)))

    def measured(self, x: "Value") -> tuple["Value", "Value"]:
        pixels = self.constant(np.array(self.pixels))
        mean = self.op("ReduceMean", x, pixels, keepdims=0)
        norm = self.op("ReduceL2", x, pixels, keepdims=0)  # root of a sum of squares, in one pass
        count = np.float32(np.prod([x.shape[i] for i in self.pixels]))
        return mean, self.op("Div", self.op("Mul", norm, norm), self.constant(count))

    def of_groups(self, channels: Sequence["Value"]) -> "Value":
        """Return the means over groups, (B, groups, 1), of the channels of all parts."""
        whole = channels[0] if len(channels) == 1 else self.op("Concat", *channels, axis=1)
        grouped = self.op("Reshape", whole, self.constant(np.array([0, self.groups, -1])))
        return self.op("ReduceMean", grouped, self.constant(np.array([2])), keepdims=1)

    def by_group(self, parameter: "Value") -> "Value":
        return self.constant(parameter.const_value.numpy().reshape(self.groups, -1))

    def split(self, y: "Value") -> Sequence["Value"]:
        """Return what concerns each part."""
        import onnx_ir as ir

        if len(self.sizes) == 1:
            return [y]
        sizes = self.constant(np.array(self.sizes))
        node = ir.node("Split", [y, sizes], attributes={"axis": 1}, num_outputs=len(self.sizes))
        return self.insert(node)

    def op(self, name: str, *inputs: "Value", **attributes: Any) -> "Value":
        import onnx_ir as ir

        (y,) = self.insert(ir.node(name, inputs, attributes=attributes))
        return y

    def insert(self, node: "Node") -> Sequence["Value"]:
        for y in node.outputs:
            y.name = self.name()
        self.graph.insert_before(self.node, node)
        return node.outputs

    def constant(self, values: Any) -> "Value":
        import onnx_ir as ir

        tensor = ir.Tensor(np.asarray(values), name=self.name())
        value = ir.Value(name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def name(self) -> str:
        """Return a name that no other value has."""
        self.count += 1
        return f"{self.prefix}.{self.count}"
