"""`import qdiff` and `--help` cost nothing that they do not need."""

import subprocess
import sys
from pathlib import Path

import pytest

import qdiff
from qdiff.__main__ import VERBS
from tests.command_line import refusal

ROOT = Path(__file__).parents[2]
OURS = {"qdiff", "diffusion", "torch", "numpy", "safetensors", "psutil"}
PIPELINES = {"correct", "evaluate", "load_pipeline", "load_run", "quantize"}  # which know networks and configurations


def modules_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after `code`."""
    report = f"import sys\n{code}\nprint(*sys.modules, file=sys.stderr)"
    ended = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True, cwd=ROOT)
    return {name.partition(".")[0] for name in ended.stderr.split()}


def test_the_names_of_the_paper():
    for name in qdiff.__all__:
        assert getattr(qdiff, name).__name__ == name
    assert set(qdiff.__all__) <= set(dir(qdiff))
    with pytest.raises(AttributeError, match="'qdiff' has no attribute 'QuantModle'"):
        qdiff.QuantModle  # noqa: B018


def test_what_the_names_load():
    needed = "import torch, numpy, safetensors.torch\nbefore = set(sys.modules)\n"
    names = [name for name in qdiff.__all__ if name not in PIPELINES]
    use = f"import qdiff\nfor name in {names}: getattr(qdiff, name)\nfor name in before: del sys.modules[name]"
    loaded = modules_after(needed + use)
    assert "qdiff" in loaded
    assert {name for name in loaded if name not in sys.stdlib_module_names} <= OURS


@pytest.mark.parametrize("words", [["--help"], *([verb, "--help"] for verb in VERBS)])
def test_help_needs_no_torch(words):
    code = f"import runpy\nsys.argv = ['qdiff', *{words}]\ntry: runpy.run_module('qdiff', run_name='__main__')\n"
    assert "torch" not in modules_after(code + "except SystemExit as end: assert not end.code")


def test_the_command_line_loads_no_torch():
    modules = [f"qdiff.cli.{path.stem}" for path in (ROOT / "qdiff" / "cli").glob("*.py")]
    assert len(modules) > 8
    assert "torch" not in modules_after(f"import {', '.join(modules)}")


def test_verbs():
    assert "did you mean inspect" in refusal("insect")
    assert "required" in refusal()


def test_a_refusal_is_one_line_and_status_2():
    ended = subprocess.run(
        [sys.executable, "-m", "qdiff", "insect"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1
