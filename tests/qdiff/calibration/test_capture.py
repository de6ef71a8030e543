"""What is captured, in double precision, so that batches of any size give the same.

In float32 they differ by 2e-6, because they are summed in another order, and where an activation lies nearer than that
to the boundary of two codes, everything behind it differs by up to 0.15: in 12 of 60 batches of five samples with one
thread, in 16 with two (PyTorch 2.10, 2.14 and 2.15 alike). In float64 there was no difference at all.
"""

import errno
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from qdiff.adapters import adapter_for
from qdiff.calibration.capture import Captured, Store
from qdiff.calibration.capture import capture as capture_on_the_way
from qdiff.calibration.data import CalibrationSet
from qdiff.calibration.partial_forward import block_call, block_output
from qdiff.calibration.prefix_cache import PrefixCache
from qdiff.policy import QuantPolicy, QuantSpec
from qdiff.quant_block import Observer, QuantBlock
from qdiff.quant_model import QuantModel
from tests.tiny import tiny_network

W4 = QuantSpec(4, per_channel=True, range_search="minmax")
POLICY = QuantPolicy(W4, QuantSpec(8, range_search="minmax"), split=True)
PATHS = [
    "model.temb.dense.1",
    "model.conv_in",
    "model.down.1.attn.0",
    "model.mid.block_2",
    "model.up.0.block.0",  # split
    "model.conv_out",
]


@pytest.fixture(scope="module")
def data() -> CalibrationSet:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 3, 8, 8, generator=generator, dtype=torch.float64)
    return CalibrationSet((x, torch.tensor([0, 10, 500, 999, 3])))


@pytest.fixture(scope="module")
def model(data) -> QuantModel:
    """Weights and activations quantized."""
    model = QuantModel(network := tiny_network().double(), POLICY, adapter_for(network)).eval()
    with model.observing(Observer):
        model(*data.inputs)
    return model


def block_of(model: QuantModel, path: str) -> QuantBlock:
    return next(block for block in model.blocks() if block.path == path)


def capture(model: QuantModel, block: nn.Module, data: CalibrationSet, batch_size: int, store: Store) -> Captured:
    """Without outputs of finished blocks, for which there is no memory."""
    return capture_on_the_way(PrefixCache(model, [block], data, batch_size, 0), block, store)


def full_run(network: nn.Module, path: str, inputs: tuple[Tensor, ...]) -> tuple[list[Tensor], Tensor]:
    """Arguments and result of one module in an undisturbed forward."""
    seen = {}
    handle = network.get_submodule(path).register_forward_hook(
        lambda module, args, output: seen.update(args=[x.clone() for x in args], output=output.clone())
    )
    with torch.no_grad():
        network(*inputs)
    handle.remove()
    return seen["args"], seen["output"]


@pytest.mark.parametrize("path", PATHS)
def test_inputs_are_those_of_the_quantized_network_and_targets_those_of_the_original(path, model, data, tmp_path):
    found = capture(model, block_of(model, path).module, data, 2, Store(10**9, tmp_path))
    inputs, _ = full_run(model, path, data.inputs)
    _, target = full_run(tiny_network().double(), path.removeprefix("model."), data.inputs)
    assert len(found) == 5, "the last, smaller batch counts"
    assert len(found.inputs.args) == len(inputs)
    for ours, theirs in zip((*found.inputs.args, found.target.tree), (*inputs, target)):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
        assert not ours.requires_grad


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_batch_size_does_not_matter(batch_size, model, data, tmp_path):
    block = block_of(model, "model.down.0.block.0").module
    one, other = (capture(model, block, data, size, Store(10**9, tmp_path)) for size in (2, batch_size))
    for a, b in zip((*one.inputs.args, one.target.tree), (*other.inputs.args, other.target.tree)):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("path", PATHS[1:-1])
def test_nothing_behind_the_block_is_computed(path, model, data):
    block = block_of(model, path).module

    def entered(run) -> list[str]:
        names, order = {m: name for name, m in model.named_modules()}, []
        handle = nn.modules.module.register_module_forward_pre_hook(lambda m, args: order.append(names.get(m)))
        run()
        handle.remove()
        return order

    with torch.no_grad():
        everything = entered(lambda: model(*data.inputs))
        before = entered(lambda: block_call(model, block, data.call))
        within = entered(lambda: block_output(model, block, data.call))
    position = everything.index(path)
    inside = [name for name in everything[position:] if f"{name}.".startswith(f"{path}.")]
    assert before == everything[: position + 1]
    assert within == everything[: position + len(inside)]
    assert len(within) < len(everything)


def test_the_network_is_as_it_was(model, data, tmp_path):
    with torch.no_grad():
        expected = model(*data.inputs)
        capture(model, block_of(model, "model.mid.block_2").module, data, 2, Store(0, tmp_path))
        assert torch.equal(model(*data.inputs), expected)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_an_error_within_leaves_no_hook_no_file_and_quantizers_on(model, data, tmp_path):
    block = block_of(model, "model.conv_in").module
    wrong = CalibrationSet((torch.zeros(4, 5, 8, 8, dtype=torch.float64), torch.zeros(4)))
    with pytest.raises(ValueError, match="images are"):
        capture(model, block, wrong, 2, Store(0, tmp_path))
    calls = 0

    def fail(module, args):
        nonlocal calls
        calls += 1
        if calls == 4:  # in full precision, with the first batch already stored
            raise ZeroDivisionError

    handle = block.register_forward_pre_hook(fail)
    with pytest.raises(ZeroDivisionError):
        capture(model, block, data, 2, Store(0, tmp_path))
    handle.remove()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(layer.quantizing for layer in model.layers().values())
    assert os.listdir(tmp_path) == []


# Room for what is captured


def mapped(folder: Path) -> int:
    """Files of the folder that this process has mapped, deleted ones included."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    return len({line.split()[4] for line in maps if f"{folder}/captured-" in line})


needs_proc = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="/proc is Linux's")


@needs_proc
def test_budget(tmp_path):
    store = Store(4 * (100 + 50), tmp_path)
    tensors = [store.empty((100,), torch.float32)]
    assert mapped(tmp_path) == 0
    tensors.append(store.empty((20, 3), torch.float32))  # 60 > 50
    assert mapped(tmp_path) == 1
    tensors.append(store.empty((25,), torch.int64))  # 50
    assert mapped(tmp_path) == 1
    tensors.append(store.empty((1,), torch.uint8))
    assert mapped(tmp_path) == 2
    assert [(tuple(x.shape), x.dtype) for x in tensors] == [
        ((100,), torch.float32),
        ((20, 3), torch.float32),
        ((25,), torch.int64),
        ((1,), torch.uint8),
    ]
    for i, x in enumerate(tensors):
        x.fill_(i)
    assert [x.unique().tolist() for x in tensors] == [[0], [1], [2], [3]]
    del x, tensors
    assert mapped(tmp_path) == 0
    assert os.listdir(tmp_path) == []


@needs_proc
@pytest.mark.parametrize("budget", [0, 5 * 3 * 8 * 8 * 8, 10**9])
def test_budget_changes_no_number(budget, model, data, tmp_path):
    block = block_of(model, "model.conv_in").module
    found = capture(model, block, data, 2, Store(budget, tmp_path))
    expected = capture(model, block, data, 2, Store(10**9, tmp_path))
    assert mapped(tmp_path) == {0: 2, 10**9: 0}.get(budget, 1)
    assert torch.equal(found.inputs.args[0], expected.inputs.args[0])
    assert torch.equal(found.target.tree, expected.target.tree)


@pytest.mark.parametrize("name", ["captured", "bad\udcff"])
def test_a_killed_process_leaves_no_file(name, tmp_path):
    folder = tmp_path / name
    folder.mkdir()
    held = Store(0, folder).empty((1000,), torch.float32).fill_(1)
    assert os.listdir(folder) == [], "the name is gone while the tensor is in use"
    assert held.sum() == 1000


def test_a_disk_without_room_is_noticed_at_once(tmp_path, monkeypatch):
    """Not when the file is written to, which would kill the process without a word."""

    def full(descriptor, start, size):
        assert (start, size) == (0, 4000)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(OSError, match="No space left"):
        Store(0, tmp_path).empty((1000,), torch.float32)
    assert list(tmp_path.iterdir()) == []
