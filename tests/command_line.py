"""Command lines inside the test's process, which has torch loaded already."""

import contextlib
import io
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from qdiff.__main__ import main
from qdiff.cli.parser import run

SCRIPTS = Path(__file__).parents[1] / "scripts"


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str


def _call(program: Callable[[], None], *argv: object) -> Ended:
    out, err, status = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", [*map(str, argv)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            program()
        except SystemExit as end:
            status = end.code or 0
    return Ended(status, out.getvalue(), err.getvalue())


def qdiff(*argv: object) -> Ended:
    """Run `python -m qdiff` with these words."""
    return _call(main, "qdiff", *argv)


def script(name: str, *argv: object) -> Ended:
    """Run `python scripts/NAME` with these words."""
    path = SCRIPTS / name
    return _call(lambda: run(runpy.run_path(str(path))["main"]), path, *argv)


def refusal(*argv: object) -> str:
    """The one line with which `python -m qdiff` refuses these words."""
    ended = qdiff(*argv)
    assert ended.status == 2, ended
    assert ended.out == ""
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    return ended.err.removeprefix("error: ").rstrip("\n")
