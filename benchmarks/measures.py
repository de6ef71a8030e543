"""The measures. Times are medians after a warm-up."""

import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import torch
from networks import inputs, network, quantized
from processes import loading, sampling, startup
from row import REPEATS, Row, median_seconds

from qdiff.block_recon import Schedule, block_reconstruction
from qdiff.calibration.block_graph import cache_bytes_per_sample
from qdiff.calibration.capture import Store, capture
from qdiff.calibration.data import CalibrationSet
from qdiff.calibration.memory import peak_bytes
from qdiff.calibration.prefix_cache import PrefixCache
from qdiff.objectives import LearnedRounding, LearnedSteps
from qdiff.observers import RunningObserver
from qdiff.quant_block import QuantBlock


def forward(config: Path, batch: int) -> list[Row]:
    """Time FP and simulated quantized forwards, in turn, so that a drift of the machine's speed affects all alike."""
    quantizations = {"W4": False, "W4A8": True}
    models = {"FP": network(config)} | {name: quantized(config, act, batch) for name, act in quantizations.items()}
    given = inputs(config, batch)
    times: dict[str, list[float]] = {name: [] for name in models}
    with torch.no_grad():
        for _ in range(REPEATS):
            for name, model in models.items():
                times[name].append(median_seconds(lambda m=model: m(*given), repeats=1))
        peaks = {name: peak_bytes(lambda m=model: m(*given)) for name, model in models.items()}
    rows = [Row(f"forward {name}, batch {batch}", statistics.median(v) * 1e3, "ms") for name, v in times.items()]
    rows += [Row(f"forward {name}, peak of activations", peak / 2**20, "MiB") for name, peak in peaks.items()]
    for name in ("W4", "W4A8"):
        ratios = [q / fp for q, fp in zip(times[name], times["FP"])]
        rows.append(Row(f"forward {name} / FP", statistics.median(ratios), "x", "simulated integer arithmetic"))
    return rows


def calibration(config: Path, batch: int) -> list[Row]:
    """Measure three blocks without a prefix cache: the first residual block, the middle attention, the last but one.

    Iterations take 4 * `batch` samples; 16 * `batch` are captured.
    """
    model, data = quantized(config, True, batch), CalibrationSet(inputs(config, 16 * batch))
    blocks = model.blocks()
    cache = PrefixCache(model, [block.module for block in blocks], data, batch, memory=0)
    residual = model.adapter.blocks[0]
    first = next(b for b in blocks if type(b.module) is residual)
    middle = next(b for b in blocks if ".mid" in b.path and type(b.module) in model.adapter.blocks[1:])
    rows = [row for block in (first, middle, blocks[-2]) for row in _reconstruction(block, cache, 4 * batch)]
    return [*rows, _peak_of_process()]


def first_blocks(config: Path, batch: int) -> Iterator[Row]:
    """Measure the ranges of all activations, then each block up to the first one with attention.

    Iterations take `batch` samples; 4 * `batch` are captured.
    """
    model, data = quantized(config, True, batch), CalibrationSet(inputs(config, 4 * batch))
    blocks, attention = model.blocks(), model.adapter.blocks[1:]
    start = time.perf_counter()
    with model.observing(RunningObserver):
        peak = peak_bytes(lambda: [given(model) for given in data.batches(batch)])
    note = f"{len(data)} samples, batch {batch}, while memory is counted"
    yield Row("ranges of all activations", time.perf_counter() - start, "s", note)
    yield Row("ranges of all activations, peak memory", peak / 2**20, "MiB")
    cache = PrefixCache(model, [block.module for block in blocks], data, batch, memory=2**34)
    last = next(i for i, block in enumerate(blocks) if type(block.module) in attention)
    for block in blocks[: last + 1]:
        yield from _reconstruction(block, cache, batch)
        cache.mark_done(block.module)
    yield _peak_of_process()


def _reconstruction(block: QuantBlock, cache: PrefixCache, size: int, iterations: int = 10) -> Iterator[Row]:
    """Measure the capture of a block, and iterations of its two objectives."""
    with tempfile.TemporaryDirectory() as folder:
        store, found, start = Store(2**34, Path(folder)), [], time.perf_counter()
        peak = peak_bytes(lambda: found.append(capture(cache, block.module, store)))
        yield Row(f"capture {block.path}", time.perf_counter() - start, "s", f"{len(cache.data)} samples")
        yield Row(f"capture {block.path}, peak memory", peak / 2**20, "MiB")
        for name, objective in (("rounding", LearnedRounding(block)), ("steps", LearnedSteps(block))):
            learn = partial(block_reconstruction, block, found[0], objective, batch_size=size)
            start = time.perf_counter()
            learn(schedule=Schedule(iterations, 1e-3), generator=torch.Generator().manual_seed(0))
            each = (time.perf_counter() - start) / iterations * 1e3
            # by itself, because an iteration that is watched takes longer; of two, one has the regulariser
            peak = peak_bytes(partial(learn, schedule=Schedule(2, 1e-3), generator=torch.Generator().manual_seed(0)))
            yield Row(f"{name} {block.path}", each, "ms/iteration", f"batch {size}")
            yield Row(f"{name} {block.path}, peak memory", peak / 2**20, "MiB")


def _peak_of_process() -> Row:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return Row("peak memory of the process", peak, "GiB", "includes earlier measures")


def captures(config: Path, batch: int) -> list[Row]:
    """Measure the capture of all blocks, one after another, without and with the prefix cache."""
    model, rows = quantized(config, True, batch), []
    data = CalibrationSet(inputs(config, 4 * batch))
    for name, memory in (("without", 0), ("with", 2**34)):
        start = time.perf_counter()
        cache = PrefixCache(model, [block.module for block in model.blocks()], data, batch, memory)
        for block in model.blocks():
            with tempfile.TemporaryDirectory() as folder:
                capture(cache, block.module, Store(2**34, Path(folder)))
            cache.mark_done(block.module)
        seconds = time.perf_counter() - start
        rows.append(Row(f"capture of all blocks {name} prefix cache", seconds, "s", f"{len(data)} samples"))
    kept = cache_bytes_per_sample(cache.nodes) / 2**20
    return [*rows, Row("prefix cache", kept, "MiB/sample", "float32, of both networks")]


MEASURES: dict[str, Callable[[Path, int], Iterable[Row]]] = {
    "startup": startup,
    "forward": forward,
    "calibration": calibration,
    "first_blocks": first_blocks,
    "captures": captures,
    "loading": loading,
    "sampling": sampling,
}
