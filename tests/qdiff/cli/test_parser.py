"""What every program has from `run`."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qdiff.cli.parser import run
from qdiff.errors import UserError

LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
FAULTS = """
from qdiff.cli.parser import run
def main():
    import resource, torch
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
run(main)
"""


def faults(**variables: str) -> int:
    """Page faults of a tensor of 64 MiB."""
    environment = {k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"} | variables
    return int(subprocess.run([sys.executable, "-c", FAULTS], env=environment, capture_output=True, check=True).stdout)


@pytest.mark.skipif(
    not LARGE_PAGES.exists() or "[madvise]" not in LARGE_PAGES.read_text(),
    reason="the kernel decides",
)
def test_tensors_lie_in_large_pages_unless_the_user_says_otherwise():
    assert faults() < 2**26 / 2**12 / 4
    assert faults(THP_MEM_ALLOC_ENABLE="0") >= 2**26 / 2**12


def program(body: str, **options) -> subprocess.CompletedProcess:
    """A program whose `main` has this body."""
    code = f"import sys\nfrom qdiff.cli.parser import run\ndef main():\n    {body}\nrun(main)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, **options)


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_what_a_console_cannot_show_is_escaped(encoding):
    said = "é 日本 bad\udcff"
    ended = program(f"print({said!r})", env=os.environ | {"PYTHONIOENCODING": encoding})
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert ended.stdout == f"{said}\n".encode(encoding, "backslashreplace")


def test_a_reader_that_has_seen_enough_is_no_error():
    with subprocess.Popen(["true"], stdin=subprocess.PIPE) as reader:
        reader.wait()
        code = "from qdiff.cli.parser import run\nrun(lambda: print('x' * 10**6))"
        ended = subprocess.run([sys.executable, "-c", code], stdout=reader.stdin, stderr=subprocess.PIPE, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_imports_that_fail_stay_what_they_are():
    with pytest.raises(ModuleNotFoundError, match="nowhere"):
        run(lambda: importlib.import_module("nowhere"))


def test_a_package_that_hides_our_own_is_one_line(monkeypatch, capsys):
    def hidden():
        raise UserError("'ldm' hides")

    monkeypatch.setattr("qdiff.adapters.check_packages", hidden)
    with pytest.raises(SystemExit, match="2"):
        run(lambda: importlib.import_module("ldm.nowhere"))
    assert capsys.readouterr().err == "error: 'ldm' hides\n"


def test_an_error_is_one_line_whatever_it_quotes(capsys):
    def main():
        raise UserError("it has surplus 'a\n\x1b[2Jb'")

    with pytest.raises(SystemExit, match="2"):
        run(main)
    assert capsys.readouterr().err == "error: it has surplus 'a\\n\\x1b[2Jb'\n"
