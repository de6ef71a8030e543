"""The import rules: who may import whom, open files, name devices and draw random numbers, read off the source.

What `import qdiff` loads is tested in qdiff/test_package.py.
"""

import ast
import re
from collections.abc import Callable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NETWORKS = {"ddim", "ldm"}
SOURCES = sorted(p for room in ("diffusion", "ddim", "ldm", "qdiff", "scripts") for p in (ROOT / room).rglob("*.py"))
TREES = {p.relative_to(ROOT).as_posix(): ast.parse(p.read_text(encoding="utf-8")) for p in SOURCES}

# Modules and folders of qdiff from the mathematics up to the command line: each imports itself and what stands on lines
# above it, and never what stands beside it.
FLOW = (
    ("errors", "functional", "packing", "calls", "windows", "spectrum"),
    ("ranges", "operations"),
    ("policy",),
    ("quant_layer", "files"),
    ("observers", "adaptive_rounding", "squant", "integers", "phases", "adapters", "sampling", "parallel"),
    ("quant_block", "config", "closed_form"),
    ("objectives",),
    ("quant_model", "block_recon"),
    ("execution", "export"),
    ("backends",),
    ("calibration", "checkpoints"),
    ("correction", "mixed_precision", "evaluation"),
    ("pipelines",),
    ("analysis",),
    ("plots",),
    ("cli",),
    ("training", "__main__"),
)
KNOW_NO_NETWORK = {"files", "sampling"}
OPEN_FILES = (
    "qdiff/files/",
    "qdiff/checkpoints/",
    "qdiff/config/",
    "qdiff/calibration/data.py",
    "qdiff/correction/file.py",
    "qdiff/calibration/capture.py",  # what exceeds the memory budget
    "qdiff/evaluation/",
    "qdiff/export/onnx.py",
    "qdiff/export/onnxruntime.py",  # the graph as the engine has changed it
    "qdiff/pipelines/",
    "qdiff/sampling/run_folder.py",
    "qdiff/plots/output.py",
    "qdiff/cli/",
    "qdiff/training/",
    "scripts/",
)
NAME_DEVICES = (
    "qdiff/files/",
    "qdiff/pipelines/",
    "qdiff/sampling/noise.py",
    "qdiff/export/",  # whose engines take arrays of the CPU
    "qdiff/cli/export.py",
    "qdiff/training/",
    "scripts/",
)
DRAW_GLOBALLY = ("qdiff/training/",)  # whose trainer seeds everything


def imports(tree: ast.AST) -> Iterator[str]:
    """Modules that are imported anywhere in the file, also within functions and for type checking."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "a relative import hides the room that it comes from"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def dotted(node: ast.AST) -> str:
    """`a.b.c` of an attribute chain; `.c` where it hangs on an expression."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    return ((dotted(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call))


FILE_CALL = re.compile(
    r"(open|safe_open|load_file|save_file|serialize_file)|(torch|np|numpy|OmegaConf)\.(load|save|savez\w*|memmap)"
    r"|.*\.(open|fdopen|from_file|fromfile|tofile|read_text|write_text|read_bytes|write_bytes)"
    r"|.*\b(TemporaryDirectory|TemporaryFile|NamedTemporaryFile|mkdtemp|mkstemp)"
)
DRAW = re.compile(
    r"torch\.(rand|randn|randint|randperm|normal|bernoulli|multinomial|poisson|rand_like|randn_like|randint_like)"
    r"|.*\.(normal_|uniform_|random_|bernoulli_|exponential_|geometric_|cauchy_|log_normal_)"
)
SEED = re.compile(r"torch\.(random\.|cuda\.)?(manual_seed\w*|seed\w*|set_rng_state)|(.*\.)?seed_everything")
NUMPY = re.compile(r"(np|numpy)\.random\.(?!(Generator|PCG64|SeedSequence|RandomState|default_rng)$)\w+")


def file_calls(tree: ast.AST) -> list[str]:
    return [name for name, _ in calls(tree) if FILE_CALL.fullmatch(name)]


def device_names(tree: ast.AST) -> list[str]:
    constants = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    named = [c for c in constants if isinstance(c, str) and re.fullmatch(r"(cuda|cpu|mps|xpu)(:\d+)?", c)]
    return named + [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "cuda"]


def global_draws(tree: ast.AST) -> list[str]:
    found = [name for name in imports(tree) if name.partition(".")[0] == "random"]
    for name, call in calls(tree):
        seeded = any(keyword.arg == "generator" for keyword in call.keywords)
        unseeded_numpy = name.endswith((".default_rng", ".RandomState")) and not call.args
        if (DRAW.fullmatch(name) and not seeded) or SEED.fullmatch(name) or NUMPY.fullmatch(name) or unseeded_numpy:
            found.append(name)
    return found


def room(module: str) -> str:
    """`files` of `qdiff.files.pickles`."""
    return module.split(".")[1]


def module_of(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {module_of(path): tree for path, tree in TREES.items()}
NEEDS = {m: {i for i in imports(t) if i in MODULES} - {"qdiff", m} for m, t in MODULES.items()}
QDIFF = {m: needed for m, needed in NEEDS.items() if m.startswith("qdiff.")}


def test_there_is_something_to_check():
    assert {"ddim.models.diffusion", "qdiff.quant_model", "qdiff.adapters.ddim.blocks"} <= MODULES.keys()
    below = {"functional", "operations", "packing", "policy", "ranges"}
    assert QDIFF["qdiff.quant_layer"] == {f"qdiff.{name}" for name in below}


@pytest.mark.parametrize("module", MODULES)
def test_networks_know_nothing_of_quantization_and_only_adapters_know_networks(module):
    imported = {name.partition(".")[0] for name in imports(MODULES[module])}
    own = module.partition(".")[0]
    if own in NETWORKS:
        assert not imported & ({"qdiff"} | NETWORKS - {own})
    elif own == "diffusion":
        assert not imported & ({"qdiff"} | NETWORKS)
    elif not module.startswith("qdiff.adapters"):
        assert not imported & NETWORKS


@pytest.mark.parametrize("module", [m for m in QDIFF if not m.startswith("qdiff.adapters")])
def test_adapters_alone_know_the_classes_of_networks(module):
    """Others may annotate with the names that adapters give them, but ask adapters what an object is."""
    adapters = {i.rpartition(".")[2] for i in imports(MODULES[module]) if i.startswith("qdiff.adapters.")}
    asked = [call.args[1] for name, call in calls(MODULES[module]) if name in {"isinstance", "issubclass"}]
    assert not adapters & {dotted(node).rpartition(".")[2] for kinds in asked for node in ast.walk(kinds)}


@pytest.mark.parametrize("module", QDIFF)
def test_arrows_point_from_the_job_down_to_the_mathematics(module):
    line = {name: i for i, names in enumerate(FLOW) for name in names}
    assert room(module) in line, f"give {room(module)} its place in FLOW"
    for other in (m for m in QDIFF[module] if m.startswith("qdiff.") and room(m) != room(module)):
        assert line[room(other)] < line[room(module)], f"{module} imports {other}"


@pytest.mark.parametrize("module", [m for m in QDIFF if room(m) in KNOW_NO_NETWORK])
def test_files_know_no_network(module):
    known = {room(other) for other in QDIFF[module] if other.startswith("qdiff.")}
    assert known <= KNOW_NO_NETWORK | {"errors"}


def test_no_import_goes_round_in_a_circle():
    TopologicalSorter(NEEDS).prepare()  # raises CycleError


@pytest.mark.parametrize("path", [p for p in TREES if not p.startswith(OPEN_FILES)])
def test_files_are_opened_elsewhere(path):
    assert file_calls(TREES[path]) == []


@pytest.mark.parametrize("path", [p for p in OPEN_FILES if p.endswith(".py")])
def test_a_module_that_may_open_files_does(path):
    assert file_calls(TREES[path])


@pytest.mark.parametrize("path", [p for p in TREES if not p.startswith(NAME_DEVICES)])
def test_devices_come_from_the_tensors(path):
    assert device_names(TREES[path]) == []


@pytest.mark.parametrize("path", [p for p in TREES if not p.startswith(DRAW_GLOBALLY)])
def test_randomness_comes_from_a_generator(path):
    assert global_draws(TREES[path]) == []


@pytest.mark.parametrize(
    ("find", "code"),
    [
        (file_calls, "open('x')"),
        (file_calls, "Path('x').open()"),
        (file_calls, "with safe_open(p, 'pt') as f: pass"),
        (file_calls, "torch.load(p, weights_only=True)"),
        (file_calls, "Path(p).read_text()"),
        (file_calls, "tempfile.TemporaryDirectory()"),
        (device_names, "x.cuda()"),
        (device_names, "x.to('cuda:0')"),
        (device_names, "def f(device='cpu'): pass"),
        (device_names, "torch.cuda.empty_cache()"),
        (global_draws, "torch.manual_seed(0)"),
        (global_draws, "torch.randn(3)"),
        (global_draws, "torch.randn_like(x)"),
        (global_draws, "x.normal_()"),
        (global_draws, "np.random.rand(3)"),
        (global_draws, "np.random.default_rng()"),
        (global_draws, "import random"),
        (global_draws, "pl.seed_everything(1)"),
    ],
)
def test_a_breach_is_found(find: Callable[[ast.AST], list[str]], code: str):
    assert find(ast.parse(code))


@pytest.mark.parametrize(
    ("find", "code"),
    [
        (file_calls, "objective.load(state)"),
        (device_names, "x.to(y.device)"),
        (device_names, "'''On cuda or cpu.'''"),
        (global_draws, "torch.randn(3, generator=g)"),
        (global_draws, "torch.Generator().manual_seed(0)"),
        (global_draws, "np.random.Generator(np.random.PCG64(1))"),
    ],
)
def test_what_is_allowed_is_no_breach(find: Callable[[ast.AST], list[str]], code: str):
    assert not find(ast.parse(code))
