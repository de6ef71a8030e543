"""Backends by name: what they make of a network, what a machine lacks, and what "auto" means."""

import copy
from dataclasses import replace

import pytest
import torch

from qdiff import backends
from qdiff.adapters import adapter_of
from qdiff.backends import BACKENDS, NAMES, Backend, check, execute, resolved
from qdiff.calls import Call
from qdiff.cli import quantization_flags
from qdiff.errors import UserError
from qdiff.observers import Observer
from qdiff.policy import QuantPolicy, QuantSpec
from qdiff.quant_model import QuantModel
from tests.tiny import tiny_network

pytestmark = pytest.mark.usefixtures("one_thread")
ERROR = 0.2  # of predictions, relative; the simulated network itself is about as far from full precision


@pytest.fixture(scope="module")
def example() -> Call:
    generator = torch.Generator().manual_seed(0)
    return Call((torch.randn(4, 3, 8, 8, generator=generator), torch.tensor([1, 200, 500, 900])))


@pytest.fixture(scope="module")
def model(example) -> QuantModel:
    policy = QuantPolicy(QuantSpec(8, per_channel=True, range_search="minmax"), QuantSpec(8, range_search="minmax"))
    model = QuantModel(tiny_network(), policy, adapter_of("ddim"))
    with model.observing(Observer):
        example(model)
    return model


@torch.no_grad()
@pytest.mark.parametrize("name", BACKENDS)
def test_what_a_backend_makes_predicts_what_the_simulated_network_does(name, model, example):
    if missing := BACKENDS[name].lacking():
        pytest.skip(missing)
    with model.full_precision():
        wanted = example(model)
    simulated = example(model)
    network, report = execute(copy.deepcopy(model), name, example)
    found = example(network)
    error, ours = ((y - wanted).norm() / wanted.norm() for y in (simulated, found))
    assert found.dtype == torch.float32 and ours < 2 * error + 1e-3
    assert "int8" in report[0] and not torch.equal(found, wanted)
    one = Call(tuple(x[:1] for x in example.tree[0]))
    torch.testing.assert_close(one(network), found[:1], rtol=0.1, atol=0.1 * float(wanted.abs().max()))


def test_a_lacking_backend_is_one_line(model, example, monkeypatch):
    monkeypatch.setitem(BACKENDS, "openvino", Backend(BACKENDS["openvino"].make, lambda: "no, pip install it"))
    with pytest.raises(UserError, match=r"^--backend openvino: no, pip install it$"):
        execute(model, "openvino", example)


def test_auto_is_the_first_that_the_machine_has(monkeypatch):
    assert resolved("torch", phases=False) == "torch"
    for name, known in list(BACKENDS.items()):
        monkeypatch.setitem(BACKENDS, name, Backend(known.make, lambda: None))
    assert resolved("auto", phases=False) == next(iter(BACKENDS)) == "openvino"
    monkeypatch.setitem(BACKENDS, "openvino", Backend(BACKENDS["openvino"].make, lambda: "missing"))
    assert resolved("auto", phases=False) == "torch"
    for name in BACKENDS:
        monkeypatch.setitem(BACKENDS, name, Backend(BACKENDS[name].make, lambda: "missing"))
    with pytest.raises(UserError, match="--backend auto: this machine has no backend"):
        resolved("auto", phases=False)


def test_auto_serves_bits_by_step(monkeypatch):
    for name, known in list(BACKENDS.items()):
        monkeypatch.setitem(BACKENDS, name, replace(known, lacking=lambda: None))
    assert resolved("auto", phases=True) == "torch"
    with pytest.raises(UserError, match=r"^--backend openvino serves no activations with bits or ranges by step: use"):
        check("openvino", phases=True)
    check("torch", phases=True)


def test_a_processor_without_vnni_is_told(model, example, monkeypatch):
    monkeypatch.setattr(backends, "has_vnni", lambda: False)
    monkeypatch.setitem(BACKENDS, "torch", Backend(lambda model, example: (model, ["all of it"]), lambda: None))
    assert execute(model, "torch", example)[1] == [
        "all of it",
        "this processor has no VNNI: integers are slower than on others",
    ]


def test_the_command_line_names_them():
    assert {quantization_flags.SIMULATED, *quantization_flags.BACKENDS} == {backends.SIMULATED, *NAMES}
