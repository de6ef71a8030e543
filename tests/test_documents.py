"""What the documents say to do works: help texts, command lines, Python.

`python -m tests.test_documents` writes docs/help again. Python 3.13 formats help texts differently, so they are written
and compared with 3.10 to 3.12, which agree.
"""

import argparse
import os
import re
import runpy
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from unittest import mock

import pytest
import torch

from qdiff.cli import convert, correct, evaluate, export, inspect, parser, plot, reproduce
from qdiff.evaluation.record_file import read_evaluation
from tests.command_line import qdiff, script
from tests.markdown import ROOT, TEXTS, blocks, commands, read

HELP = ROOT / "docs" / "help"
SCRIPTS = ("sample_diffusion_ddim", "sample_diffusion_ldm", "txt2img", "demo")
VERBS = ("inspect", "convert", "export", "correct", "evaluate", "reproduce", "plot")
KINDS = tuple(f"plot {kind}" for kind in plot.KINDS)
SMALL = {  # of the Python blocks, which would take minutes
    r"\b((?:act_)?iterations|timesteps)=\d+": r"\1=2",
    r"\bsteps=\d+": "steps=4",
    r"\bsamples=\d+": "samples=1, batch_size=2",
    r"\brange\(16\)": "range(2)",
    r"\bcount=\d+": "count=5",
    r"\bSchedule\(\d+": "Schedule(2",
}


# ---- help texts


def help_text(name: str) -> str:
    """Return what `--help` prints in a terminal of 100 columns, in the root of the repository."""
    with mock.patch.dict(os.environ, COLUMNS="100"):
        return (script(f"{name}.py", "--help") if name in SCRIPTS else qdiff(*name.split(), "--help")).out


def help_file(name: str) -> Path:
    """Return the file of a script's, a verb's or a kind of plot's help text."""
    return HELP / f"{name.replace(' ', '_')}.txt"


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="formats help texts differently")
@pytest.mark.parametrize("name", [*SCRIPTS, *VERBS, *KINDS])
def test_help(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    written = read(help_file(name))
    assert help_text(name) == written, "python -m tests.test_documents writes it again"


def test_every_help_text_has_its_program():
    assert {*HELP.iterdir()} == {help_file(name) for name in (*SCRIPTS, *VERBS, *KINDS)}


# ---- command lines


def targets() -> set[str]:
    (phony,) = re.findall(r"^\.PHONY: (.+)$", read(ROOT / "Makefile"), re.MULTILINE)
    return set(phony.split())


class Parsed(BaseException):
    """The command line is parsed, which is all that a test asks."""


def parse_only(monkeypatch: pytest.MonkeyPatch, words: Sequence[str]) -> None:
    """Run a command up to the end of its own parsing. Raises `Parsed`, or whatever the parser raises."""
    real, real_args = parser.parse, argparse.ArgumentParser.parse_args

    def stop(*args, **kwargs):
        real(*args, **kwargs)
        raise Parsed

    def stop_args(self, *args, **kwargs):
        real_args(self, *args, **kwargs)
        raise Parsed

    for module in (parser, inspect, convert, export, correct, evaluate, reproduce, plot):
        monkeypatch.setattr(module, "parse", stop)
    program, *argv = words
    if program == "-m":
        return import_module("qdiff.__main__").VERBS[argv[1]](argv[2:])
    if not re.search("sample|txt2img|demo", program):
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop_args)
        monkeypatch.syspath_prepend(ROOT / Path(program).parent)
    monkeypatch.setattr(sys, "argv", [program, *argv])
    runpy.run_path(str(ROOT / program))["main"]()


COMMANDS = [(name, words) for name, text in TEXTS.items() for words in commands(text)]


def test_there_are_commands():
    assert len([words for name, words in COMMANDS if name == "README.md"]) > 8
    assert len([words for name, words in COMMANDS if name == "docs/paper_commands.md"]) > 12


@pytest.mark.parametrize("words", [words for _, words in COMMANDS], ids=lambda words: " ".join(words)[:60])
def test_a_command_is_accepted(words, monkeypatch):
    if words[0] == "make":
        assert {word for word in words[1:] if "=" not in word} <= targets()
    elif words[:-1] == ["python", "-m", "qdiff"]:  # named without its flags
        assert words[-1] in VERBS
    else:
        with pytest.raises(Parsed):
            parse_only(monkeypatch, words[1:])


def test_a_wrong_command_is_not_accepted(monkeypatch):
    for command in (
        "scripts/txt2img.py --prompt x --weight_bit 4",
        "scripts/sample_diffusion_ldm.py -r x",
        "-m qdiff inspect",
        "-m qdiff plot ranges --config x",
    ):
        with pytest.raises(Exception, match=r"needs|missing|required"):
            parse_only(monkeypatch, command.split())


# ---- Python


def with_small_numbers(code: str) -> str:
    for pattern, small in SMALL.items():
        code = re.sub(pattern, small, code)
    return code


def run_blocks(path: Path) -> dict:
    """Run the Python blocks of a document in order, with small numbers; return its names."""
    names: dict = {"__name__": path.stem}
    for block in blocks(read(path), "python"):
        exec(compile(with_small_numbers(block), path.name, "exec"), names)
    return names


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Iterator[Path]:
    """A folder that looks like the root of the repository, and is the working directory."""
    folder, before = tmp_path_factory.mktemp("root"), Path.cwd()
    for name in ("configs", "models"):
        (folder / name).symlink_to(ROOT / name)
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module")
def readme(root) -> dict:
    return run_blocks(ROOT / "README.md")


@pytest.mark.slow
def test_the_readme_runs(readme, root):
    assert readme["images"].tensor.shape == (8, 3, 32, 32)
    assert (root / "first.png").exists()
    assert torch.equal(readme["quantized"].sample(2).tensor, readme["again"].sample(2).tensor)
    assert not torch.equal(readme["quantized"].sample(2).tensor, readme["pipe"].sample(2).tensor)


@pytest.mark.slow
def test_the_python_document_runs(root):
    names = run_blocks(ROOT / "docs" / "python.md")
    layers = names["model"].layers()
    assert {path for path, layer in layers.items() if layer.weight_quantizer.quantizers()[0].spec.bits == 8} == {
        "model.conv_in",
        "model.conv_out",
    }
    assert names["eps"].shape == (1, 3, 32, 32)


def test_a_network_of_your_own_runs(root):
    names = run_blocks(ROOT / "docs" / "adding_a_model.md")
    *_, last = names["sample"](names["model"])
    assert torch.equal(last.x_prev, names["last"].x_prev)


def test_a_reader_without_this_package_gives_the_weights(readme):
    names = run_blocks(ROOT / "docs" / "file_format.md")
    layer = readme["again"].network.layers()["model.conv_in"]
    assert torch.equal(torch.as_tensor(names["weight"]).float(), layer.quantized_weight())


@pytest.mark.slow
def test_the_document_about_evaluation_runs(root, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / "cache"))
    names = run_blocks(ROOT / "docs" / "evaluation.md")
    assert "frechet" in names["found"].values
    assert {"psnr", "eps"} <= read_evaluation(root / "w4.json").values.keys()


@pytest.mark.slow
def test_the_document_about_mixed_precision_runs(root):
    names = run_blocks(ROOT / "docs" / "mixed_precision.md")
    assert names["mixed"].network.provenance["mixed_precision"]["criterion"] == {"name": "bops", "share": 0.7}


@pytest.mark.slow
def test_the_document_about_backends_runs(root):
    names = run_blocks(ROOT / "docs" / "deploy.md")
    assert names["executed"].execution.backend == "torch"


def test_every_python_block_is_run():
    run = {"README.md", *(f"docs/{name}.md" for name in ("python", "adding_a_model", "file_format", "evaluation"))}
    run |= {"docs/mixed_precision.md", "docs/deploy.md"}
    assert {name for name, text in TEXTS.items() if blocks(text, "python")} == run


if __name__ == "__main__":
    os.chdir(ROOT)
    HELP.mkdir(exist_ok=True)
    for program in (*SCRIPTS, *VERBS, *KINDS):
        help_file(program).write_text(help_text(program), encoding="utf-8")
