"""What is measured. Times are medians after a warm-up; each process-wide figure has its own process."""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from networks import inputs, network, quantized
from safetensors.torch import save_file

from qdiff.adapters import adapter_for
from qdiff.block_recon import LearnedRounding, LearnedSteps, Schedule, block_reconstruction
from qdiff.calibration_data import CalibrationSet
from qdiff.capture import Store, capture
from qdiff.checkpoint import save_quantized
from qdiff.cli.latent_config import build_latent, load_latent_config
from qdiff.cli.networks import is_latent
from qdiff.compat import original_shapes
from qdiff.fitting import legacy_owners, splits_of, state_shapes
from qdiff.measuring import peak_bytes
from qdiff.policy import QuantPolicy, QuantSpec
from qdiff.replay import Replay, kept_bytes

REPEATS = 7


@dataclass(frozen=True)
class Row:
    """One figure."""

    name: str
    value: float
    unit: str
    note: str = ""


def median_seconds(function: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median wall time of a call, after one that does not count."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def forward(config: Path, batch: int) -> list[Row]:
    """FP and simulated quantized forward, in turn, so that a drift of the machine's speed hits them alike."""
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


def calibration(config: Path, batch: int, iterations: int = 10) -> list[Row]:
    """Capture and iterations of three blocks: the first residual block, attention in the middle, the last but one.

    Iterations take four times `batch` samples, which are captured four times over.
    """
    model, size = quantized(config, True, batch), 4 * batch
    samples = 4 * size
    blocks = model.blocks()
    way = Replay(model, [block.module for block in blocks], CalibrationSet(inputs(config, samples)), batch, 0)
    rows = []
    residual = model.adapter.blocks[0]
    first = next(b for b in blocks if type(b.module) is residual)
    middle = next(b for b in blocks if ".mid" in b.path and type(b.module) in model.adapter.blocks[1:])
    for block in (first, middle, blocks[-2]):
        with tempfile.TemporaryDirectory() as folder:
            store, found, start = Store(2**34, Path(folder)), [], time.perf_counter()
            peak = peak_bytes(lambda: found.append(capture(way, block.module, store)))  # noqa: B023
            rows.append(Row(f"capture {block.path}", time.perf_counter() - start, "s", f"{samples} samples"))
            rows.append(Row(f"capture {block.path}, peak memory", peak / 2**20, "MiB"))
            captured = found[0]
            for name, objective in (("rounding", LearnedRounding(block)), ("steps", LearnedSteps(block))):
                start = time.perf_counter()
                schedule = Schedule(iterations, 1e-3)
                block_reconstruction(block, captured, objective, schedule, size, torch.Generator().manual_seed(0))
                each = (time.perf_counter() - start) / iterations * 1e3
                rows.append(Row(f"{name} {block.path}", each, "ms/iteration", f"batch {size}"))
    return rows


def captures(config: Path, batch: int) -> list[Row]:
    """The inputs and outputs of all blocks, one block after another, without and with outputs of finished blocks."""
    model, rows = quantized(config, True, batch), []
    data = CalibrationSet(inputs(config, 4 * batch))
    for name, memory in (("without", 0), ("with", 2**34)):
        start = time.perf_counter()
        way = Replay(model, [block.module for block in model.blocks()], data, batch, memory)
        for block in model.blocks():
            with tempfile.TemporaryDirectory() as folder:
                capture(way, block.module, Store(2**34, Path(folder)))
            way.settle(block.module)
        seconds = time.perf_counter() - start
        rows.append(Row(f"capture of all blocks {name} replay", seconds, "s", f"{len(data)} samples"))
    kept = kept_bytes(way.stops) / 2**20
    return [*rows, Row("kept for replay", kept, "MiB/sample", "float32, of both networks")]


MEMORY = """
import sys, time
from pathlib import Path
status = lambda key: int(Path("/proc/self/status").read_text().partition(key)[2].split()[0])
def measure(load):
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory starts anew
    before, start = status("VmRSS:"), time.perf_counter()
    load()
    print(time.perf_counter() - start, (status("VmHWM:") - before) / 1024)
"""
LOAD = f"""{MEMORY}
from qdiff.cli.config import build_network, load_config
from qdiff.checkpoint import load_quantized, load_weights
config = Path(sys.argv[2])
model = build_network(load_config(config), config)
measure(lambda: load_weights(model, sys.argv[1]) if sys.argv[3] == "fp" else load_quantized(
    model, sys.argv[1], weight_bit=4, act_bit=8, split=True
))
"""
LOAD_LATENT = f"""{MEMORY}
from qdiff.cli.ldm_flags import ldm_parser
from qdiff.cli.parser import parse
from qdiff.cli.sample_ldm import ClassPipeline
args = parse(ldm_parser(), ["-r", sys.argv[1], "--config", sys.argv[2], "--seed", "0"])
measure(lambda: ClassPipeline(args).load())
"""


def original_state(config: Path) -> dict[str, torch.Tensor]:
    """A calibrated checkpoint as the original lays it out; its numbers mean nothing."""
    model, policy = network(config), QuantPolicy(act=QuantSpec(8), split=True)
    adapter = adapter_for(model)
    shapes = state_shapes(model, policy, adapter), splits_of(model, policy, adapter), legacy_owners(model, adapter)
    values = {"delta": torch.ones, "zero_point": torch.ones}  # of weights from -1 to 14
    return {
        key: values.get(key.rpartition(".")[2], lambda shape: 15 * torch.rand(shape) - 1)(shape)
        for key, shape in original_shapes(*shapes).items()
    }


def loading(config: Path, batch: int) -> list[Row]:
    """Time and added peak memory of loading each format, each in a process of its own."""
    rows = []
    if is_latent(config):
        return _loading_of_latent(config)
    with tempfile.TemporaryDirectory() as folder:
        files = {"FP safetensors": ("fp", f"{folder}/fp.safetensors"), "W4A8, ours": ("q", f"{folder}/q.safetensors")}
        save_file(network(config).state_dict(), files["FP safetensors"][1])
        files["FP pickle"] = ("fp", f"{folder}/fp.ckpt")
        torch.save(network(config).state_dict(), files["FP pickle"][1])
        files["W4A8, the original's"] = ("q", f"{folder}/original.pth")
        torch.save(original_state(config), files["W4A8, the original's"][1])
        save_quantized(files["W4A8, ours"][1], quantized(config, True, batch), config={}, provenance={})
        for name, (kind, path) in files.items():
            rows += _load(name, path, LOAD, str(config), kind)
    return rows


def _loading_of_latent(config: Path) -> list[Row]:
    """The whole model as the script loads it, from a file of the published size."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model.ckpt"
        torch.save({"state_dict": build_latent(load_latent_config(config), config).state_dict()}, path)
        return _load("whole model, FP pickle", path, LOAD_LATENT, str(config))


def _load(name: str, path: str, code: str, *args: str) -> list[Row]:
    runs = [_child(code, path, *args) for _ in range(3)]
    seconds, mib = (statistics.median(column) for column in zip(*runs))
    size = Path(path).stat().st_size / 1e6
    return [
        Row(f"load {name}", seconds, "s", f"{size:.1f} MB"),
        Row(f"load {name}, peak memory added", mib, "MiB", f"{mib * 2**20 / 1e6 / size:.2f} x the file"),
    ]


def _child(code: str, *args: str) -> list[float]:
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def startup(config: Path, batch: int) -> list[Row]:
    """Import of qdiff beyond torch, and `--help`."""
    clock = "import time; start = time.perf_counter()\n{}\nprint(time.perf_counter() - start)"
    rows = []
    for name, before, what in (
        ("import torch", "", "import torch"),
        ("import qdiff", "", "import qdiff"),
        ("import qdiff.QuantModel, beyond torch", "import torch\n", "from qdiff import QuantModel, load_quantized"),
    ):
        seconds = statistics.median(_child(before + clock.format(what))[0] for _ in range(5))
        rows.append(Row(name, seconds, "s"))
    script = [sys.executable, "scripts/sample_diffusion_ddim.py", "--help"]
    help_time = median_seconds(lambda: subprocess.run(script, capture_output=True, check=True), 5)
    return [*rows, Row("sample_diffusion_ddim.py --help", help_time, "s")]


MEASURES: dict[str, Callable[[Path, int], list[Row]]] = {
    "startup": startup,
    "forward": forward,
    "calibration": calibration,
    "captures": captures,
    "loading": loading,
}
