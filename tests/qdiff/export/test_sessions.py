"""Whole networks in each engine: what runs in integers, and that the error of quantization stays what it is."""

import builtins

import pytest
import torch

from qdiff.adapters import adapter_for
from qdiff.calls import Call
from qdiff.errors import UserError
from qdiff.export.check import check_exported
from qdiff.export.engines import ENGINES
from qdiff.export.onnx import export_graph, write_graph
from qdiff.export.session import in_float, in_integers
from qdiff.export.weights import pack_weights
from qdiff.quant_model import QuantModel
from tests.qdiff.export.networks import NETWORKS, W4A8, exported

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")


FLOAT = {"openvino": set(), "onnxruntime": {"convolutions"}}  # what an engine does not execute in int8


@pytest.fixture(scope="module", params=NETWORKS)
def case(request):
    return exported(request.param)


@pytest.fixture(scope="module")
def pixel_space():
    return exported("pixel-space")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_network(case, engine):
    session = ENGINES[engine](case.graph, threads=1)
    found = check_exported(case.model, session, case.call, full_precision=case.fp, repetitions=1)
    assert found.exported_quantization < 1.1 * found.quantization
    assert found.error < 0.5 * found.quantization
    assert {x.kind for x in in_float(found.executed)} == FLOAT[engine]
    layers = case.model.layers().values()
    slices = sum(len(layer.split or (0,)) for layer in layers if layer.codes.ndim > 2)
    shown = slices if engine == "openvino" else 0
    assert f"{shown} of {slices} convolutions" in in_integers(found.executed)
    assert min(found.simulated_seconds, found.exported_seconds) > 0


@pytest.mark.parametrize("engine", ENGINES)
def test_any_batch(case, engine):
    session = ENGINES[engine](case.graph, threads=1)
    whole = case.call(session)
    for size in (1, 2):
        parts = [part(session) for part in case.call.batches(size)]
        assert torch.dist(torch.cat(parts), whole) <= 0.1 * whole.norm()


def test_inputs_are_those_of_the_network():
    _, _, call, graph = exported("class-conditional")
    session = ENGINES["onnxruntime"](graph)
    x, t = call.args
    wanted = call(session)
    assert torch.equal(session(x, t, None, call.kwargs["y"]), wanted)  # without context
    assert torch.equal(session(x, timesteps=t.float().long(), y=call.kwargs["y"].int()), wanted)
    with pytest.raises(TypeError, match="takes x, timesteps, y, not x, timesteps"):
        session(x, t)
    with pytest.raises(TypeError, match="takes"):
        session(x, t, y=call.kwargs["y"], context=x)
    with pytest.raises(TypeError, match="takes"):
        session(x, t, t, t)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_file_with_weights_of_4_bits_is_executed_in_integers(pixel_space, engine, tmp_path):
    packed = pixel_space.graph.clone()
    pack_weights(packed.graph)
    write_graph(pixel_space.graph, tmp_path / "a.onnx")
    write_graph(packed, tmp_path / "b.onnx")
    assert (tmp_path / "b.onnx").stat().st_size < 0.8 * (tmp_path / "a.onnx").stat().st_size
    a, b = (ENGINES[engine](tmp_path / f"{name}.onnx", threads=1) for name in "ab")
    assert torch.equal(pixel_space.call(a), pixel_space.call(b))
    assert {x.kind for x in in_float(b.executed())} == FLOAT[engine]


def test_layers_in_floating_point_are_told():
    network, call = NETWORKS["pixel-space"]()
    model = QuantModel(network, W4A8.without_activations(), adapter_for(network))
    session = ENGINES["onnxruntime"](export_graph(model, call), threads=1)
    assert len(in_float(session.executed())) == len(session.executed()) > 50
    assert "0 of 45 convolutions" in in_integers(session.executed())


def test_openvino_has_no_graph_before_the_first_call(pixel_space):
    with pytest.raises(RuntimeError, match="nothing has been executed"):
        ENGINES["openvino"](pixel_space.graph).executed()


def test_openvino_keeps_two_batch_sizes(pixel_space):
    session = ENGINES["openvino"](pixel_space.graph, threads=1)
    for size in (1, 2, 3, 2):
        pixel_space.call[:size](session)
    assert len(session._requests) == 2


@pytest.mark.parametrize("engine", ENGINES)
def test_a_missing_package_is_one_line(pixel_space, engine, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == engine:
            raise ImportError(f"No module named '{name}'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install 'qdiff\[(onnx|openvino)\]'"):
        ENGINES[engine](pixel_space.graph)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_foreign_file_is_one_line(engine, tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"no graph at all")
    with pytest.raises(UserError, match=r"a\.onnx' is no ONNX graph"):
        ENGINES[engine](tmp_path / "a.onnx")
    with pytest.raises(UserError, match=r"b\.onnx"):
        ENGINES[engine](tmp_path / "b.onnx")


def test_a_call_with_one_sample_is_an_example(pixel_space):
    graph = export_graph(pixel_space.model, Call(pixel_space.call[:1].args))
    session = ENGINES["onnxruntime"](graph)
    assert torch.equal(pixel_space.call(session), pixel_space.call(ENGINES["onnxruntime"](pixel_space.graph)))
