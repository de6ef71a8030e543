"""What a graph joins is not taken apart again, and joined as bytes."""

import pytest

from tests.qdiff.export.networks import exported

ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxscript")

from qdiff.export.concats import fold_splits, push_concats  # noqa: E402


def operators(graph):
    return [node.op_type for node in graph]


def value(name, *shape):
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))


def test_split_shortcuts_read_both_tensors_before_they_are_joined():
    _, model, _, graph = exported("pixel-space")
    assert any(layer.split for layer in model.layers().values())
    assert fold_splits(graph.graph) == 0
    assert all(node.inputs[0].shape is None for node in graph.graph if node.op_type == "Split")  # of scales and shifts


def test_tensors_are_joined_as_bytes_alone():
    _, model, _, graph = exported("pixel-space")
    joins = [node for node in graph.graph if node.op_type == "Concat" and len(node.outputs[0].shape or ()) == 4]
    assert len(joins) == sum(layer.split is not None for layer in model.layers().values())
    for node in joins:
        assert {x.producer().op_type for x in node.inputs} == {"DequantizeLinear"}
        assert [reader.op_type for reader, _ in node.outputs[0].uses()] == ["Conv"]


def small_graph(parts, pieces):
    """Split(Concat(...)) of tensors with so many channels, into so many."""
    inputs = [
        ir.Value(name=f"x{i}", shape=ir.Shape([2, n]), type=ir.TensorType(ir.DataType.FLOAT))
        for i, n in enumerate(parts)
    ]
    joined = ir.node("Concat", inputs, attributes={"axis": 1})
    split = ir.node(
        "Split", joined.outputs, attributes={"axis": 1, "num_outputs": len(pieces)}, num_outputs=len(pieces)
    )
    for value, n in zip(split.outputs, pieces):
        value.shape = ir.Shape([2, n])
    ends = [ir.node("Relu", [value]) for value in split.outputs]
    return ir.Graph(inputs, [end.outputs[0] for end in ends], nodes=[joined, split, *ends], opset_imports={"": 21})


def test_only_the_same_pieces_are_folded():
    same, other = small_graph((3, 5), (3, 5)), small_graph((3, 5), (4, 4))
    assert (fold_splits(same), fold_splits(other)) == (1, 0)
    assert [node.inputs[0].name for node in same if node.op_type == "Relu"] == ["x0", "x1"]


class TestPushing:
    def graph(self, operator, other, sizes=(3, 5)):
        """An operator on Concat(...) and something else."""
        inputs = [value(f"x{i}", 2, n, 4, 4) for i, n in enumerate(sizes)]
        joined = ir.node("Concat", inputs, attributes={"axis": 1})
        joined.outputs[0].shape = ir.Shape([2, sum(sizes), 4, 4])
        end = ir.node(operator, [joined.outputs[0], *other])
        end.outputs[0].shape, end.outputs[0].name = joined.outputs[0].shape, "y"
        return ir.Graph([*inputs, *other], end.outputs, nodes=[joined, end], opset_imports={"": 21})

    def test_an_elementwise_operator(self):
        graph = self.graph("Sigmoid", [])
        assert push_concats(graph) == 1
        assert operators(graph) == ["Sigmoid", "Sigmoid", "Concat"]
        (end,) = graph.outputs
        assert end.producer().op_type == "Concat" and list(end.shape) == [2, 8, 4, 4]
        assert [list(x.shape) for x in end.producer().inputs] == [[2, 3, 4, 4], [2, 5, 4, 4]]

    @pytest.mark.parametrize(
        ("operator", "other"),
        [("Softmax", []), ("Add", [(2, 8, 4, 4)]), ("Mul", [(8, 1, 1)])],
        ids=["along channels", "a whole tensor", "a number for each channel"],
    )
    def test_what_needs_the_whole_stays(self, operator, other):
        graph = self.graph(operator, [value(f"z{i}", *shape) for i, shape in enumerate(other)])
        assert push_concats(graph) == 0
        assert operators(graph) == ["Concat", operator]
