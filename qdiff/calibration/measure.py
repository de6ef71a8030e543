"""Measure what a plan rests on: seconds and bytes of a network's blocks, from two forwards of a batch."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from qdiff.block_recon import output_loss
from qdiff.calibration.block_graph import BlockNode, cache_bytes_per_sample, cached_samples, trace_blocks
from qdiff.calibration.memory import batch_peak
from qdiff.calibration.plan import BlockPlan, Plan, default_budget
from qdiff.calibration.settings import CalibrationSettings
from qdiff.calibration.solve_cost import SolveSpeed, solve_bytes
from qdiff.calls import Call
from qdiff.objectives import LearnedRounding, LearnedSteps, Objective
from qdiff.observers import minmax
from qdiff.quant_block import ActSite, QuantBlock
from qdiff.quant_layer import fit_quantizer
from qdiff.quant_model import QuantModel
from qdiff.spectrum import GRIDS


def synchronized_time(x: Tensor) -> float:
    """Return the wall-clock time in seconds, after synchronizing the device of `x`, of any shape."""
    if not x.is_cpu:
        torch.accelerator.synchronize(x.device)
    return time.perf_counter()


def forward_seconds(model: nn.Module, call: Call) -> float:
    """Return the seconds of one forward; an unmeasured one before it prepares kernels."""
    with torch.no_grad():
        call(model)
        start = synchronized_time(call.tensors[0])
        call(model)
        return synchronized_time(call.tensors[0]) - start


def _block_seconds(model: QuantModel, blocks: Iterable[QuantBlock], batch: Call) -> dict[str, float]:
    """Return the seconds of each block's forward, in the order in which they are called."""
    started: dict[str, float] = {}
    spent: dict[str, float] = {}

    def before(path: str):
        def hook(module, args):
            started[path] = synchronized_time(batch.tensors[0])

        return hook

    def after(path: str):
        def hook(module, args, output):
            spent[path] = synchronized_time(batch.tensors[0]) - started[path]

        return hook

    with ExitStack() as hooks, torch.no_grad():
        batch(model)  # the first forward also prepares kernels
        for block in blocks:
            hooks.callback(block.module.register_forward_pre_hook(before(block.path)).remove)
            hooks.callback(block.module.register_forward_hook(after(block.path)).remove)
        batch(model)
    return spent


@contextmanager
def _some_quantizer(sites: Sequence[ActSite]) -> Iterator[None]:
    """Quantize activations with an arbitrary step size inside, the same in all phases: memory does not depend on it."""
    before = [site.quantizer for site in sites]
    for site in sites:
        some = torch.ones(1, sum(site.split or (1,)))
        spec = max(site.specs, key=lambda spec: spec.step_is_learned)  # of a phase whose steps are learned, if any
        site.set(fit_quantizer(some, minmax(spec), site.split))
    try:
        yield
    finally:
        for site, quantizer in zip(sites, before):
            site.set(quantizer)


def make_plan(
    model: QuantModel,
    batch: Call,
    samples: int,
    settings: CalibrationSettings,
    memory: int | None,
    *,
    data_in_memory: bool = True,
    processes: int = 1,
) -> Plan:
    """Measure a forward on a batch, block by block, and the memory of a forward and of each block's iteration.

    Args:
        model: in evaluation mode.
        batch: arguments of the network as in calibration, on its device.
        samples: size of the calibration set.
        settings: of the calibration.
        memory: bytes for captured activations of all processes; None for half of the memory that computing leaves free.
        data_in_memory: whether the calibration set is in memory already; if not, its bytes are set aside.
        processes: that share the learning, each with its part of a batch.
    """
    blocks = model.blocks()
    nodes = trace_blocks(model, [block.module for block in blocks], batch[:1])
    node_of = {node.module: node for node in nodes}
    scale = settings.batch_size / len(batch)
    with _some_quantizer(model.sites()), torch.no_grad():
        size = min(samples, settings.forward_samples(bool(model.sites())))
        forward_bytes = batch_peak(model, model, batch, size)
    seconds = {path: spent * scale for path, spent in _block_seconds(model, blocks, batch).items()}
    prefixes = _prefix_seconds(seconds, [block.path for block in blocks])
    speed = SolveSpeed(batch.tensors[0].device) if settings.closed_form else None
    plans = [
        BlockPlan(
            path=block.path,
            weights=sum(layer.codes.numel() for layer in block.layers.values()),
            sites=sum(site.step_is_learned for site in block.sites),
            sample_bytes=node_of[block.module].captured_bytes,
            iteration_bytes=_iteration_bytes(block, node_of[block.module], settings, processes),
            seconds=seconds[block.path],
            prefix_seconds=prefixes[block.path][0],
            cached_prefix_seconds=prefixes[block.path][1],
            layers=len(block.layers),
            **_solve_cost(block, samples, settings, speed),
        )
        for block in blocks
    ]
    data_bytes = samples * batch.sample_bytes
    plan = Plan(plans, samples, settings, forward_bytes, data_bytes=data_bytes, processes=processes)
    if memory is None:
        computing = 0 if batch.tensors[0].is_cuda else processes * plan.working_bytes
        memory = default_budget(computing + (0 if data_in_memory else data_bytes))
    memory //= processes
    cached = cached_samples(nodes, samples, settings.batch_size, memory)
    return replace(plan, budget=memory, cached_samples=cached, cached_bytes=cached * cache_bytes_per_sample(nodes))


def _prefix_seconds(seconds: Mapping[str, float], learned: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Return the seconds of a forward through each block: from the input, and from behind the cached blocks.

    Args:
        seconds: of the blocks, in the order in which they are called.
        learned: the same blocks in the order in which they are learned.
    """
    called, spent = list(seconds), list(seconds.values())
    found, cached = {}, 0
    for i, path in enumerate(learned):
        start, end = cached, called.index(path) + 1  # the last block that is done is computed once more, for the cache
        while cached < len(called) and called[cached] in learned[:i]:
            cached += 1
        found[path] = sum(spent[:end]), sum(spent[start:end])
    return found


def _solve_cost(
    block: QuantBlock, samples: int, settings: CalibrationSettings, speed: SolveSpeed | None
) -> dict[str, Any]:
    """Return what `BlockPlan` says about quantizing in closed form."""
    if not (settings.closed_form and speed):
        return {}
    layers, means = list(block.layers.values()), sum(blocks**2 for blocks in GRIDS if blocks)
    columns = settings.closed_form.columns
    return {
        "solve_seconds": speed.seconds(layers, columns + samples * means),
        "solve_bytes": solve_bytes(layers, columns + settings.batch_size * means),
    }


def _iteration_bytes(block: QuantBlock, node: BlockNode, settings: CalibrationSettings, processes: int) -> int:
    """Return the peak bytes of an iteration in one of so many processes, of the larger of the two stages."""
    found, size = [0], settings.batch_size // processes
    if settings.rounding:
        found.append(_learning_peak(block, LearnedRounding(block), node, size))
    if settings.steps:
        with _some_quantizer(block.sites):
            if any(site.step_is_learned for site in block.sites):
                found.append(_learning_peak(block, LearnedSteps(block), node, size))
    return max(found)


def _learning_peak(block: QuantBlock, objective: Objective, node: BlockNode, size: int) -> int:
    def iteration(*args: Any, **kwargs: Any) -> None:
        output, learned = block.module(*args, **kwargs), [x for x in block.module.parameters() if x.requires_grad]
        samples = len(node.output.select(output)[0])
        loss = output_loss(output, node.output.empty(samples), objective.p) + objective.penalty(1, 2)
        torch.autograd.grad(loss, learned)

    with objective:
        return batch_peak(block.module, iteration, node.call, size)
