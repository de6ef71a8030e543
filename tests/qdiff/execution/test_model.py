"""Whole networks: what computes how, accuracy in the mean, memory, phases, files."""

import copy

import pytest
import torch
from torch import Tensor, nn

from ddim.models.diffusion import Model
from qdiff.adapters import adapter_for
from qdiff.checkpoints.load import load_quantized, save_quantized
from qdiff.errors import UserError
from qdiff.execution import execute_integers, executed_leaves, has_vnni
from qdiff.execution import model as execution
from qdiff.functional import relative_squared_error
from qdiff.observers import Observer
from qdiff.policy import QuantPolicy, QuantSpec
from qdiff.quant_model import QuantModel
from tests.ldm.tiny import AVERAGED, CLASSES, tiny_latent
from tests.qdiff.loops import gaussian
from tests.qdiff.test_phases import TIMES, at, calibrated
from tests.tiny import tiny_config, tiny_network

Call = tuple[Tensor, ...]


def policy(weight_bits: int = 4, act_bits: int = 8, **other) -> QuantPolicy:
    weight = QuantSpec(weight_bits, per_channel=True, range_search="minmax")
    return QuantPolicy(weight, QuantSpec(act_bits, range_search="minmax"), split=True, **other)


def quantized(net: nn.Module, call: Call, of: QuantPolicy) -> QuantModel:
    model = QuantModel(net, of, adapter_for(net)).eval()
    with model.observing(Observer):
        model(*call)
    return model


def pixel(n: int = 8) -> tuple[nn.Module, Call]:
    return tiny_network(), (gaussian(n, 3, 8, 8), torch.arange(n) * 100)


def transformer(n: int = 4) -> tuple[nn.Module, Call]:
    return tiny_latent(CLASSES).model.diffusion_model, (
        gaussian(n, 3, 16, 16),
        torch.arange(n) * 200,
        gaussian(n, 2, 48, seed=1),
    )


def packed_attention(n: int = 4) -> tuple[nn.Module, Call]:
    return tiny_latent(AVERAGED).model.diffusion_model, (gaussian(n, 4, 16, 16), torch.arange(n) * 200)


NETWORKS = {"pixel": pixel, "transformer": transformer, "packed attention": packed_attention}


@torch.no_grad()
@pytest.mark.parametrize("weight_bits", [4, 8])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_as_accurate_as_the_simulated_one(name, weight_bits):
    net, call = NETWORKS[name]()
    wanted = net(*call)
    model = quantized(net, call, policy(weight_bits))
    simulated = relative_squared_error(model(*call), wanted)
    assert execute_integers(model) is model
    assert execute_integers(model).leaves() == model.leaves()  # nothing is left to do
    assert relative_squared_error(model(*call), wanted) < 1.1**2 * simulated


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_leaves_are_the_simulated_ones_on_the_same_inputs(name):
    net, call = NETWORKS[name]()
    model = quantized(net, call, policy())
    executed = execute_integers(copy.deepcopy(model)).leaves()
    found, wanted = [], []

    def compare(path: str, leaf: nn.Module, inputs: Call, output: Tensor) -> None:
        error = executed[path](*inputs) - output
        found.append(relative_squared_error(error + output, output))
        wanted.append(error.abs().max() <= 2e-6 * output.abs().max())

    handles = [
        leaf.register_forward_hook(lambda leaf, inputs, output, path=path: compare(path, leaf, inputs, output))
        for path, leaf in model.leaves().items()
    ]
    model(*call)
    assert len(found) == len(handles) == len(executed)
    assert max(found) < 1e-3  # where inputs halfway between two codes took the other one
    assert sum(wanted) > 0.8 * len(wanted)


@torch.no_grad()
def test_what_stays_in_floating_point_is_told_with_the_reason():
    net, call = pixel()
    rules = (("model.conv_out", None), ("model.mid.block_1.conv1", 16))
    rules += (("model.mid.attn_1.qk_matmul.k", None), ("model.mid.attn_1.smv_matmul.w", 16))
    model = execute_integers(quantized(net, call, policy(act_rules=rules)))
    leaves = {leaf.path: leaf for leaf in executed_leaves(model)}
    assert list(leaves) == list(model.leaves())
    floating = {path: leaf.reason for path, leaf in leaves.items() if leaf.arithmetic == "float32"}
    assert floating.pop("model.conv_out") == "its input is not quantized"
    assert floating.pop("model.mid.block_1.conv1") == "its input has 16 bits"
    assert floating.pop("model.mid.attn_1.qk_matmul") == "its operand k is not quantized"
    assert floating.pop("model.mid.attn_1.smv_matmul") == "its operand w has 16 bits"
    assert not [reason for reason in floating.values() if has_vnni() or "saturate" not in reason]
    assert {leaf.arithmetic for leaf in leaves.values()} == {"int8", "float32"}


@torch.no_grad()
def test_weights_that_would_saturate_without_vnni_stay_in_floating_point(monkeypatch):
    monkeypatch.setattr(execution, "has_vnni", lambda: False)
    net, call = pixel()
    model = execute_integers(quantized(net, call, policy(4, weight_rules=(("model.conv_in", 8),))))
    reasons = {leaf.path: leaf.reason for leaf in executed_leaves(model) if not leaf.path.endswith("_matmul")}
    assert "saturate" in reasons.pop("model.conv_in")
    assert not any(reasons.values())


@torch.no_grad()
@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_file_of_weights_alone_computes_the_same_or_in_bfloat16(monkeypatch, bfloat16):
    net, call = pixel()
    model = QuantModel(net, policy().without_activations(), adapter_for(net)).eval()
    wanted = model(*call)
    monkeypatch.setattr(execution, "has_bfloat16", lambda: bfloat16)
    execute_integers(model)
    if bfloat16:
        assert 0 < relative_squared_error(model(*call), wanted) < 1e-3
    else:
        assert torch.equal(model(*call), wanted)
    layers = {leaf.arithmetic for leaf in executed_leaves(model) if not leaf.path.endswith("_matmul")}
    assert layers == {"bfloat16" if bfloat16 else "float32"}


@torch.no_grad()
@pytest.mark.parametrize("weight_bits", [4, 8])
def test_memory(weight_bits):
    config = tiny_config()
    config.model.ch = 128
    net = Model(config).eval()
    before = sum(p.nbytes for p in net.parameters())
    model = execute_integers(quantized(net, pixel()[1], policy(weight_bits)))
    kept = sum(p.nbytes for p in [*model.parameters(), *model.buffers()])
    assert kept + sum(leaf.nbytes for leaf in executed_leaves(model)) < 0.3 * before


@torch.no_grad()
def test_phases_compute_as_simulated():
    model = calibrated()
    executed = execute_integers(copy.deepcopy(model))
    assert executed.has_phases
    for t in TIMES:
        assert relative_squared_error(executed(*at(t)), model(*at(t))) < 1e-3


@torch.no_grad()
@pytest.mark.parametrize("low_memory", [False, True])
def test_a_calibrated_file_is_executed_and_not_saved_again(tmp_path, low_memory):
    net, call = pixel()
    model = quantized(net, call, policy())
    save_quantized(tmp_path / "file.safetensors", model)
    loaded = load_quantized(tiny_network(), tmp_path / "file.safetensors", act_bit=8, split=True, low_memory=low_memory)
    assert torch.equal(execute_integers(loaded)(*call), execute_integers(model)(*call))
    with pytest.raises(ValueError, match="computes with integers"):
        save_quantized(tmp_path / "again.safetensors", loaded)
    with pytest.raises(ValueError, match="integer weights only"), loaded.full_precision():
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["file.safetensors"]


def test_an_unfinished_calibration_is_refused_and_changes_nothing():
    net, _ = pixel()
    model = QuantModel(net, policy(), adapter_for(net)).eval()
    before = model.leaves()
    with pytest.raises(ValueError, match="is not calibrated"):
        execute_integers(model)
    assert model.leaves() == before


def test_a_network_on_another_device_is_refused():
    net, call = pixel()
    model = quantized(net, call, policy()).to("meta")
    with pytest.raises(UserError, match=r"on the CPU, the network is on meta: use --device cpu"):
        execute_integers(model)
