"""Measurements that a plan rests on: seconds and bytes of a network's blocks, from a few small forwards."""

import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qdiff.block_recon import LearnedRounding, LearnedSteps, Objective
from qdiff.calibration import CalibrationSettings
from qdiff.functional import lp_loss
from qdiff.observing import minmax
from qdiff.planning import BlockPlan, Plan
from qdiff.quant_block import ActSite, QuantBlock
from qdiff.quant_layer import fit_quantizer
from qdiff.quant_model import QuantModel
from qdiff.replay import kept_bytes, replayed_samples, route


def now(x: Tensor) -> float:
    """Seconds on a clock, once everything that the device of `x` was given to do is done."""
    if not x.is_cpu:
        torch.accelerator.synchronize(x.device)
    return time.perf_counter()


def forward_seconds(model: nn.Module, inputs: Sequence[Tensor]) -> float:
    """Seconds of one forward; an unmeasured one before it prepares kernels."""
    with torch.no_grad():
        model(*inputs)
        start = now(inputs[0])
        model(*inputs)
        return now(inputs[0]) - start


class _LiveTensors(TorchDispatchMode):
    """Counts the bytes of tensors that come into being within its scope, and takes off those that are gone."""

    def __init__(self):
        super().__init__()
        self.bytes = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self._note((args, kwargs), counted=False)  # what came from outside is not ours, nor is a view of it
        output = func(*args, **(kwargs or {}))
        self._note(output, counted=True)
        return output

    def _note(self, tree: object, counted: bool) -> None:
        for x in tree_leaves(tree):
            if isinstance(x, Tensor) and (storage := x.untyped_storage())._cdata not in self.known:
                size = storage.nbytes() * counted
                self.known.add(storage._cdata)
                self.bytes += size
                self.peak = max(self.peak, self.bytes)
                weakref.finalize(storage, self._forget, storage._cdata, size)

    def _forget(self, storage: int, size: int) -> None:
        self.known.discard(storage)
        self.bytes -= size


def peak_bytes(run: Callable[[], object]) -> int:
    """Most bytes that tensors made within `run()` occupy at one time; what kernels take inside them is not seen."""
    with _LiveTensors() as live:
        run()
    return live.peak


def batch_peak(
    run: Callable[..., object],
    inputs: Sequence[Tensor],
    size: int,
    most: int | None = None,
) -> int:
    """`peak_bytes` of `run(*inputs)` on a batch of `size`, continued from batches of an eighth and a quarter of it.

    Smaller ones would not tell where something does not depend on the batch, such as gradients of weights, and hides
    its part there; elsewhere the smaller of the two need not have more than `most` samples. Where attention of the
    whole batch comes in slices and that of the smaller ones does not, the result is too large.
    """
    few = max(1, min(size // 8, most or size))
    batches = [[x[:1].repeat_interleave(n, 0) for x in inputs] for n in (few, 2 * few)]
    less, more = (peak_bytes(lambda: run(*batch)) for batch in batches)  # noqa: B023 - called at once
    return less + (more - less) * (size - few) // few


@dataclass(frozen=True)
class _Seen:
    """A block in one forward: its inputs, seconds."""

    inputs: tuple[Tensor, ...]
    seconds: float


def _look(model: QuantModel, blocks: Iterable[QuantBlock], batch: Sequence[Tensor]) -> dict[str, _Seen]:
    started: dict[str, float] = {}
    seen: dict[str, _Seen] = {}

    def before(path: str):
        def hook(module, args):
            started[path] = now(args[0])

        return hook

    def after(path: str):
        def hook(module, args, output):
            seconds = now(output) - started[path]
            seen[path] = _Seen(tuple(x[:1].detach() for x in args), seconds)

        return hook

    with ExitStack() as hooks, torch.no_grad():
        model(*batch)  # the first forward also prepares kernels
        for block in blocks:
            hooks.callback(block.module.register_forward_pre_hook(before(block.path)).remove)
            hooks.callback(block.module.register_forward_hook(after(block.path)).remove)
        model(*batch)
    return seen


@contextmanager
def _some_quantizer(sites: Sequence[ActSite], device: torch.device):
    """Activations quantized with any step, as memory goes; without quantizers afterwards, as before."""
    for site in sites:
        some = torch.ones(1, sum(site.split or (1,)), device=device)
        site.set(fit_quantizer(some, minmax(site.spec), site.split))
    try:
        yield
    finally:
        for site in sites:
            site.set(None)


def make_plan(
    model: QuantModel, batch: Sequence[Tensor], samples: int, settings: CalibrationSettings, memory: int
) -> Plan:
    """Measure a forward of a batch, block by block, and the memory of a forward and of every block's iteration.

    Args:
        model: in evaluation mode, with activations that are not quantized yet.
        batch: inputs as in calibration, on the model's device.
        samples: size of the calibration set.
        settings: of the calibration.
        memory: bytes for captured activations.
    """
    blocks = model.blocks()
    stops = route(model, [block.module for block in blocks], [x[:1] for x in batch])
    replayed = replayed_samples(stops, samples, settings.batch_size, memory)
    seen = _look(model, blocks, batch)
    captured = {path: stop.captured for path, stop in zip(seen, stops)}  # both in the order in which blocks are called
    scale = settings.batch_size / len(batch[0])
    with _some_quantizer(model.sites(), batch[0].device), torch.no_grad():
        size = min(samples, settings.forward_samples(model.policy.act is not None))
        forward_bytes = batch_peak(model, batch, size, most=2)
    seconds = {path: block.seconds * scale for path, block in seen.items()}
    ways = _ways(seconds, [block.path for block in blocks])
    plans = [
        BlockPlan(
            path=block.path,
            weights=sum(layer.codes.numel() for layer in block.layers.values()),
            sites=sum(site.spec.step_is_learned for site in block.sites),
            sample_bytes=captured[block.path],
            iteration_bytes=_iteration_bytes(block, seen[block.path].inputs, settings),
            seconds=seconds[block.path],
            way=ways[block.path][0],
            short_way=ways[block.path][1],
        )
        for block in blocks
    ]
    return Plan(plans, samples, settings, forward_bytes, replayed, replayed * kept_bytes(stops))


def _ways(seconds: Mapping[str, float], learned: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Seconds of the way to each block and through it: from the beginning, and from behind those that are passed.

    Args:
        seconds: of the blocks, in the order in which they are called.
        learned: the same blocks in the order in which they are learned.
    """
    called, spent = list(seconds), list(seconds.values())
    found, passed = {}, 0
    for i, path in enumerate(learned):
        start, end = passed, called.index(path) + 1
        while passed < len(called) and called[passed] in learned[:i]:
            passed += 1
        found[path] = sum(spent[:end]), sum(spent[start:end])
    return found


def _iteration_bytes(block: QuantBlock, inputs: Sequence[Tensor], settings: CalibrationSettings) -> int:
    """Of the larger of the two stages."""
    found = [0]
    if settings.rounding:
        found.append(_learning_peak(block.module, LearnedRounding(block), inputs, settings.batch_size))
    if settings.steps:
        with _some_quantizer(block.sites, inputs[0].device):
            if any(site.spec.step_is_learned for site in block.sites):
                found.append(_learning_peak(block.module, LearnedSteps(block), inputs, settings.batch_size))
    return max(found)


def _learning_peak(module: nn.Module, objective: Objective, inputs: Sequence[Tensor], size: int) -> int:
    def iteration(*inputs: Tensor) -> None:
        output = module(*inputs)
        torch.autograd.grad(lp_loss(output, torch.zeros_like(output), objective.p), objective.parameters())

    with objective:
        return batch_peak(iteration, inputs, size)
