"""Measures in separate processes: loading, startup, and the memory of sampling."""

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from networks import network, quantized
from row import Row, median_seconds
from safetensors.torch import save_file

from qdiff.adapters import adapter_for
from qdiff.checkpoints.load import save_quantized
from qdiff.checkpoints.original import original_shapes
from qdiff.checkpoints.validate import legacy_owners, splits_of, state_shapes
from qdiff.config.latent import build_latent, load_latent_config
from qdiff.config.networks import is_latent
from qdiff.policy import QuantPolicy, QuantSpec

MEMORY = """
import sys, time
from pathlib import Path
status = lambda key: int(Path("/proc/self/status").read_text().partition(key)[2].split()[0])
def measure(load):
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak of memory
    before, start = status("VmRSS:"), time.perf_counter()
    load()
    print(time.perf_counter() - start, (status("VmHWM:") - before) / 1024)
"""
LOAD = f"""{MEMORY}
from qdiff.config.pixel import build_network, load_config
from qdiff.checkpoints.load import load_quantized
from qdiff.checkpoints.weights import load_weights
config = Path(sys.argv[2])
model = build_network(load_config(config), config)
measure(lambda: load_weights(model, sys.argv[1]) if sys.argv[3] == "fp" else load_quantized(
    model, sys.argv[1], weight_bit=4, act_bit=8, split=True
))
"""
LOAD_LATENT = f"""{MEMORY}
import qdiff
measure(lambda: qdiff.load_pipeline(sys.argv[1], config=sys.argv[2]))
"""


CALLS = f"""{MEMORY}
import torch
from qdiff.checkpoints.load import load_quantized
from qdiff.checkpoints.weights import load_weights
from qdiff.config.networks import load_network
sys.path.insert(0, "benchmarks")
from networks import inputs
config, kind, size = Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
with torch.device("meta"):
    model = load_network(config)[1].eval()
given, seconds = inputs(config, size), []
@torch.no_grad()
def sample():
    global model
    model = model.to_empty(device="cpu")
    if kind == "FP":
        load_weights(model, sys.argv[1])
    else:
        model = load_quantized(model, sys.argv[1], split=True, low_memory=kind == "low")
    for _ in range(2):
        start = time.perf_counter()
        model(*given)
        seconds.append(time.perf_counter() - start)
measure(sample)
print(seconds[-1])
"""


def original_state(config: Path) -> dict[str, torch.Tensor]:
    """Return a calibrated checkpoint in the original's layout, with meaningless numbers."""
    model, policy = network(config), QuantPolicy(act=QuantSpec(8), split=True)
    adapter = adapter_for(model)
    shapes = state_shapes(model, policy, adapter), splits_of(model, policy, adapter), legacy_owners(model, adapter)
    values = {"delta": torch.ones, "zero_point": torch.ones}  # of weights from -1 to 14
    return {
        key: values.get(key.rpartition(".")[2], lambda shape: 15 * torch.rand(shape) - 1)(shape)
        for key, shape in original_shapes(*shapes).items()
    }


def loading(config: Path, batch: int) -> list[Row]:
    """Measure time and added peak memory of loading each format, each in its own process."""
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
    """Measure loading the whole model as the script does, from a file of the published size."""
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


def sampling(config: Path, batch: int) -> list[Row]:
    """Measure loading and two calls of the network, each variant in its own process: time of a call, peak memory."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        fp, w4 = f"{folder}/fp.safetensors", f"{folder}/w4.safetensors"
        save_file(network(config).state_dict(), fp)
        start = time.perf_counter()
        save_quantized(w4, quantized(config, False, batch), config={}, provenance={})
        rows.append(Row("quantize to W4 and save", time.perf_counter() - start, "s"))
        ratio = Path(w4).stat().st_size / Path(fp).stat().st_size
        rows.append(Row("W4 file", Path(w4).stat().st_size / 1e6, "MB", f"{ratio:.4f} x FP"))
        for name, path, kind in (("FP", fp, "FP"), ("W4", w4, "usual"), ("W4 --low_memory", w4, "low")):
            _, mib, seconds = _child(CALLS, path, str(config), kind, str(batch))
            rows.append(Row(f"call {name}, batch {batch}", seconds, "s", "simulated integer arithmetic"))
            rows.append(Row(f"load and call {name}, peak memory added", mib, "MiB"))
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return [*rows, Row("peak memory of quantizing and saving", own, "MiB", "of the process, FP weights included")]


def _child(code: str, *args: str) -> list[float]:
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def startup(config: Path, batch: int) -> list[Row]:
    """Time the import of qdiff, also without that of torch, and `--help`."""
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
