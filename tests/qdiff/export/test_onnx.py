"""The graph itself: nodes, weights in 4 bits, TensorRT's rules, and what is refused."""

import os

import numpy as np
import pytest
import torch

from qdiff.adapters import adapter_for
from qdiff.errors import UserError
from qdiff.export.onnx import export_graph, export_onnx, read_graph, write_graph
from qdiff.policy import QuantPolicy
from qdiff.quant_block import QuantProduct
from qdiff.quant_model import QuantModel
from tests.qdiff.export.networks import NETWORKS, SYMMETRIC, W4A8, exported

ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxscript")

from qdiff.export.tensorrt import breaches  # noqa: E402
from qdiff.export.weights import pack_weights, weights, widen_weights  # noqa: E402


@pytest.fixture(scope="module")
def pixel_space():
    return exported("pixel-space")


def operators(graph):
    return [node.op_type for node in graph.graph]


def parts(node):
    """What a product reads: both factors; instead of a Concat, what it joins."""
    for x in node.inputs[:2]:
        yield from x.producer().inputs if x.producer().op_type == "Concat" else [x]


def test_each_layer_is_there_with_its_integers(pixel_space):
    _, model, _, graph = pixel_space
    layers = model.layers().values()
    slices = sum(len(layer.split or (0,)) for layer in layers)
    assert len(weights(graph.graph)) == slices
    products = [node for node in graph.graph if node.op_type in ("Conv", "Gemm", "MatMul")]
    assert len(products) == slices + sum(isinstance(m, QuantProduct) for m in model.modules())
    assert {x.producer().op_type for node in products for x in parts(node)} == {"DequantizeLinear"}
    assert {x.dtype for _, x in weights(graph.graph)} == {ir.DataType.INT8}


def test_inputs_have_the_names_of_the_parameters_and_any_batch(pixel_space):
    graph = pixel_space.graph
    assert [x.name for x in graph.graph.inputs] == ["x", "t"]
    assert [not isinstance(x.shape[0], int) for x in graph.graph.inputs] == [True, True]
    assert graph.graph.opset_imports[""] == 21


def test_weights_in_4_bits_come_back(pixel_space):
    before = pixel_space.graph
    values = [x.const_value.numpy() for _, x in weights(before.graph)]
    graph = before.clone()
    packed = pack_weights(graph.graph)
    assert packed > len(values) // 2  # all but those without zero among their codes
    assert sum(x.dtype == ir.DataType.UINT4 for _, x in weights(graph.graph)) == packed
    assert widen_weights(graph.graph) == packed
    after = [x.const_value.numpy() for _, x in weights(graph.graph)]
    assert all(np.array_equal(a, b) for a, b in zip(values, after, strict=True))


def test_weights_of_8_bits_are_not_packed():
    graph = exported("class-conditional", SYMMETRIC).graph.clone()
    assert pack_weights(graph.graph) < len(weights(graph.graph)) // 2


def test_a_file_comes_back(pixel_space, tmp_path):
    graph = pixel_space.graph
    write_graph(graph, tmp_path / "a.onnx")
    again = read_graph(tmp_path / "a.onnx")
    assert operators(again) == operators(graph)
    assert [p.name for p in tmp_path.iterdir()] == ["a.onnx"]


# ---- TensorRT


def test_symmetric_activations_keep_the_rules():
    assert breaches(exported("class-conditional", SYMMETRIC).graph.graph) == []


def test_asymmetric_activations_break_the_rules(pixel_space):
    graph = pixel_space.graph
    rules = {breach.rule for breach in breaches(graph.graph)}
    assert rules == {"zero points must be 0", "quantized values must be int8"}
    assert all(breach.node for breach in breaches(graph.graph))


# ---- what is refused


def test_phases_are_refused():
    network, call = NETWORKS["pixel-space"]()
    policy = QuantPolicy(W4A8.weight, W4A8.act, act_phases=((500, 4),))
    with pytest.raises(UserError, match="quantized by phase"):
        export_graph(uncalibrated(network, policy), call)


def uncalibrated(network, policy):
    return QuantModel(network, policy, adapter_for(network))


def test_what_is_not_calibrated_is_refused():
    network, call = NETWORKS["pixel-space"]()
    with pytest.raises(UserError, match=r"act_quantizer is not calibrated"):
        export_graph(uncalibrated(network, W4A8), call)


def test_an_unwritable_target_is_one_line(pixel_space, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"cannot use .*file"):
        write_graph(pixel_space.graph, tmp_path / "file" / "a.onnx")
    assert os.listdir(tmp_path) == ["file"]


def test_the_model_stays_as_it_is(pixel_space, tmp_path):
    _, model, call, _ = pixel_space
    before = {key: x.clone() for key, x in model.state_dict().items()}
    with torch.no_grad():
        wanted = call(model)
        export_onnx(model, call, tmp_path / "a.onnx", packed=True)
        assert torch.equal(call(model), wanted)
    assert all(torch.equal(x, before[key]) for key, x in model.state_dict().items())
