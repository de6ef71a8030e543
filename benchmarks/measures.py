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
from safetensors.torch import save_file

from qdiff.adapters.ddim import ADAPTER
from qdiff.block_recon import LearnedRounding, LearnedSteps, Schedule, block_reconstruction
from qdiff.calibration_data import CalibrationSet
from qdiff.capture import Store, capture
from qdiff.checkpoint import save_quantized
from qdiff.cli.config import build_network, load_config
from qdiff.compat import original_shapes
from qdiff.fitting import legacy_owners, splits_of, state_shapes
from qdiff.measuring import peak_bytes
from qdiff.policy import QuantPolicy, QuantSpec
from qdiff.quant_block import Observer
from qdiff.quant_model import QuantModel

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


def network(config: Path) -> torch.nn.Module:
    """The network of a configuration with fixed random weights."""
    torch.manual_seed(0)
    return build_network(load_config(config), config).eval()


def quantized(config: Path, act: bool, split: bool = True) -> QuantModel:
    """W4 or W4A8, activation ranges found on random inputs."""
    policy = QuantPolicy(QuantSpec(4, per_channel=True, range_search="minmax"), QuantSpec(8) if act else None, 8, split)
    model = QuantModel(network(config), policy, ADAPTER).eval()
    for site in model.sites():
        site.observe(Observer)
    if act:
        with torch.no_grad():
            model(*inputs(config, 8))
        for site in model.sites():
            site.settle()
    return model


def inputs(config: Path, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise at spread timesteps."""
    data = load_config(config).data
    return torch.randn(batch, data.channels, data.image_size, data.image_size), torch.linspace(0, 999, batch).long()


def forward(config: Path, batch: int = 8) -> list[Row]:
    """FP and simulated quantized forward, in turn, so that a drift of the machine's speed hits them alike."""
    models = {"FP": network(config), "W4": quantized(config, act=False), "W4A8": quantized(config, act=True)}
    x, t = inputs(config, batch)
    times: dict[str, list[float]] = {name: [] for name in models}
    with torch.no_grad():
        for _ in range(REPEATS):
            for name, model in models.items():
                times[name].append(median_seconds(lambda m=model: m(x, t), repeats=1))
        peaks = {name: peak_bytes(lambda m=model: m(x, t)) for name, model in models.items()}
    rows = [Row(f"forward {name}, batch {batch}", statistics.median(v) * 1e3, "ms") for name, v in times.items()]
    rows += [Row(f"forward {name}, peak of activations", peak / 2**20, "MiB") for name, peak in peaks.items()]
    for name in ("W4", "W4A8"):
        ratios = [q / fp for q, fp in zip(times[name], times["FP"])]
        rows.append(Row(f"forward {name} / FP", statistics.median(ratios), "x", "simulated integer arithmetic"))
    return rows


def calibration(config: Path, samples: int = 128, batch: int = 32, iterations: int = 10) -> list[Row]:
    """Capture and iterations of three blocks: the first residual block, the middle attention, the last up block."""
    model = quantized(config, act=True)
    data = CalibrationSet(inputs(config, samples))
    rows = []
    blocks = model.blocks()
    for block in (blocks[3], next(b for b in blocks if "mid.attn" in b.path), blocks[-2]):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            captured = capture(model, block.module, data, batch, Store(2**34, Path(folder)))
            rows.append(Row(f"capture {block.path}", time.perf_counter() - start, "s", f"{samples} samples"))
            for name, objective in (("rounding", LearnedRounding(block)), ("steps", LearnedSteps(block))):
                start = time.perf_counter()
                schedule = Schedule(iterations, 1e-3)
                block_reconstruction(block, captured, objective, schedule, batch, torch.Generator().manual_seed(0))
                each = (time.perf_counter() - start) / iterations * 1e3
                rows.append(Row(f"{name} {block.path}", each, "ms/iteration", f"batch {batch}"))
    return rows


LOAD = """
import sys, time
from pathlib import Path
from qdiff.cli.config import build_network, load_config
from qdiff.checkpoint import load_quantized, load_weights
config = Path(sys.argv[2])
model = build_network(load_config(config), config)
Path("/proc/self/clear_refs").write_text("5")  # the peak of memory starts anew
status = lambda key: int(Path("/proc/self/status").read_text().partition(key)[2].split()[0])
before = status("VmRSS:")
start = time.perf_counter()
load_weights(model, sys.argv[1]) if sys.argv[3] == "fp" else load_quantized(
    model, sys.argv[1], weight_bit=4, act_bit=8, split=True
)
print(time.perf_counter() - start, (status("VmHWM:") - before) / 1024)
"""


def original_state(config: Path) -> dict[str, torch.Tensor]:
    """A calibrated checkpoint as the original lays it out; its numbers mean nothing."""
    model, policy = network(config), QuantPolicy(act=QuantSpec(8), split=True)
    shapes = state_shapes(model, policy, ADAPTER), splits_of(model, policy, ADAPTER), legacy_owners(model, ADAPTER)
    values = {"delta": torch.ones, "zero_point": torch.ones}  # of weights from -1 to 14
    return {
        key: values.get(key.rpartition(".")[2], lambda shape: 15 * torch.rand(shape) - 1)(shape)
        for key, shape in original_shapes(*shapes).items()
    }


def loading(config: Path) -> list[Row]:
    """Time and added peak memory of loading each format, each in a process of its own."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        files = {"FP safetensors": ("fp", f"{folder}/fp.safetensors"), "W4A8, ours": ("q", f"{folder}/q.safetensors")}
        save_file(network(config).state_dict(), files["FP safetensors"][1])
        files["FP pickle"] = ("fp", f"{folder}/fp.ckpt")
        torch.save(network(config).state_dict(), files["FP pickle"][1])
        files["W4A8, the original's"] = ("q", f"{folder}/original.pth")
        torch.save(original_state(config), files["W4A8, the original's"][1])
        save_quantized(files["W4A8, ours"][1], quantized(config, act=True), config={}, provenance={})
        for name, (kind, path) in files.items():
            runs = [_child(LOAD, path, str(config), kind) for _ in range(3)]
            seconds, mib = (statistics.median(column) for column in zip(*runs))
            size = Path(path).stat().st_size / 1e6
            rows += [
                Row(f"load {name}", seconds, "s", f"{size:.1f} MB"),
                Row(f"load {name}, peak memory added", mib, "MiB"),
            ]
    return rows


def _child(code: str, *args: str) -> list[float]:
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def startup(config: Path) -> list[Row]:
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


MEASURES: dict[str, Callable[[Path], list[Row]]] = {
    "startup": startup,
    "forward": forward,
    "calibration": calibration,
    "loading": loading,
}
