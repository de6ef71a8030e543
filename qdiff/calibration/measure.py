"""Measurements that a plan rests on: seconds and bytes of a network's blocks, from two forwards of a batch."""

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from qdiff.block_recon import LearnedRounding, LearnedSteps, Objective
from qdiff.calibration.job import CalibrationSettings
from qdiff.calibration.memory import batch_peak
from qdiff.calibration.plan import BlockPlan, Plan, default_budget
from qdiff.calibration.prefix_cache import kept_bytes, replayed_samples, route
from qdiff.functional import lp_loss
from qdiff.observers import minmax
from qdiff.quant_block import ActSite, QuantBlock
from qdiff.quant_layer import fit_quantizer
from qdiff.quant_model import QuantModel


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


@dataclass(frozen=True)
class _Seen:
    """A block in one forward: its inputs, without values, and seconds."""

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
            seen[path] = _Seen(tuple(torch.empty_like(x[:1], device="meta") for x in args), seconds)

        return hook

    with ExitStack() as hooks, torch.no_grad():
        model(*batch)  # the first forward also prepares kernels
        for block in blocks:
            hooks.callback(block.module.register_forward_pre_hook(before(block.path)).remove)
            hooks.callback(block.module.register_forward_hook(after(block.path)).remove)
        model(*batch)
    return seen


@contextmanager
def _some_quantizer(sites: Sequence[ActSite]):
    """Activations quantized with any step, as memory goes; without quantizers afterwards, as before."""
    for site in sites:
        some = torch.ones(1, sum(site.split or (1,)))
        site.set(fit_quantizer(some, minmax(site.spec), site.split))
    try:
        yield
    finally:
        for site in sites:
            site.set(None)


def make_plan(
    model: QuantModel,
    batch: Sequence[Tensor],
    samples: int,
    settings: CalibrationSettings,
    memory: int | None,
    *,
    data_in_memory: bool = True,
) -> Plan:
    """Measure a forward of a batch, block by block, and the memory of a forward and of every block's iteration.

    Args:
        model: in evaluation mode, with activations that are not quantized yet.
        batch: inputs as in calibration, on the model's device.
        samples: size of the calibration set.
        settings: of the calibration.
        memory: bytes for captured activations; None: half of what computing leaves free.
        data_in_memory: whether what is free is so with the calibration set in memory; if not, it takes its part of it.
    """
    blocks = model.blocks()
    stops = route(model, [block.module for block in blocks], [x[:1] for x in batch])
    seen = _look(model, blocks, batch)
    path_of = {block.module: block.path for block in blocks}
    captured = {path_of[stop.module]: stop.captured for stop in stops}
    scale = settings.batch_size / len(batch[0])
    with _some_quantizer(model.sites()), torch.no_grad():
        size = min(samples, settings.forward_samples(bool(model.sites())))
        forward_bytes = batch_peak(model, model, batch, size)
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
    data_bytes = samples * sum(x[0].numel() * x.element_size() for x in batch)
    plan = Plan(plans, samples, settings, forward_bytes, data_bytes=data_bytes)
    if memory is None:
        memory = default_budget((0 if batch[0].is_cuda else plan.working) + (0 if data_in_memory else data_bytes))
    replayed = replayed_samples(stops, samples, settings.batch_size, memory)
    return replace(plan, budget=memory, replayed=replayed, replayed_bytes=replayed * kept_bytes(stops))


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
        found.append(_learning_peak(block, LearnedRounding(block), inputs, settings.batch_size))
    if settings.steps:
        with _some_quantizer(block.sites):
            if any(site.spec.step_is_learned for site in block.sites):
                found.append(_learning_peak(block, LearnedSteps(block), inputs, settings.batch_size))
    return max(found)


def _learning_peak(block: QuantBlock, objective: Objective, inputs: Sequence[Tensor], size: int) -> int:
    def iteration(*inputs: Tensor) -> None:
        output, learned = block.module(*inputs), [x for x in block.module.parameters() if x.requires_grad]
        loss = lp_loss(output, torch.zeros_like(output), objective.p) + objective.penalty(1, 2)
        torch.autograd.grad(loss, learned)

    with objective:
        return batch_peak(block.module, iteration, inputs, size)
