"""`python -m qdiff ...` inside the test's process, which has torch loaded already."""

import contextlib
import io
import sys
from typing import NamedTuple
from unittest import mock

from qdiff.__main__ import main


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str


def qdiff(*argv: object) -> Ended:
    """Run `python -m qdiff` with these words."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", ["qdiff", *map(str, argv)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            status = end.code or 0
    return Ended(status, out.getvalue(), err.getvalue())


def refusal(*argv: object) -> str:
    """The one line with which `python -m qdiff` refuses these words."""
    ended = qdiff(*argv)
    assert ended.status == 2, ended
    assert ended.out == ""
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    return ended.err.removeprefix("error: ").rstrip("\n")
