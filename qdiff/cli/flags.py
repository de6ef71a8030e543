"""The groups of flags that the scripts share, each flag declared once: the run itself."""

import argparse
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from qdiff.cli.parser import Parser, number
from qdiff.errors import UserError
from qdiff.files.refusals import explaining

PTQ = ("--ptq",)
ACTIVATIONS = ("--ptq", "--quant_act")


def running(parser: Parser, *folder_names: str, folder: Path, seed: int | None) -> None:
    """Add the flags of the run itself.

    Args:
        parser: the parser.
        folder_names: spellings of the flag for the run's folder.
        folder: its default.
        seed: default of `--seed`; None makes the flag required.
    """
    add = parser.group("run")
    add(
        *folder_names,
        dest="logdir",
        type=Path,
        default=folder,
        metavar="DIR",
        help="folder of the run; the same command again resumes it",
    )
    add(
        "--seed",
        default=seed,
        required=seed is None,
        help="random seed; image i depends on it and on i, not on the batch size",
        **number(int, 0, 2**32 - 1),  # what numpy's generators take
    )
    add(
        "--device",
        default="auto",
        help="where to compute; auto takes cuda, else mps, else cpu",
        **device(),
    )
    add("--dry_run", "--dry-run", action="store_true", help="print the plan (blocks, sizes, memory, time) and exit")
    add("--verbose", action="store_true", help="log in more detail, to the console as well")


def check_file(out: Path) -> None:
    """Check a file that is to be written or replaced. Raises UserError if something else has its name."""
    with explaining(out, "--out"):
        if out.is_dir():
            raise UserError(f"'{out}' is a folder: give --out the name of a file")
        if out.exists() and not out.is_file():  # a device, which would be replaced by a file
            raise UserError(f"'{out}' is not a file: choose another --out")


def check_new(out: Path, force: bool) -> None:
    """Check a file that is to be written. Raises UserError as `check_file`, or if it exists without `force`."""
    check_file(out)
    if out.exists() and not force:
        raise UserError(f"'{out}' exists: choose another --out, or add --force to replace it")


def device() -> dict[str, Any]:
    """Return the options of a flag whose value is a device."""
    return {"type": _device, "metavar": "auto|cpu|cuda|cuda:N|mps"}


def known_words(text: str, known: Collection[str], use: str) -> tuple[str, ...]:
    """Return words between commas, for the type of a flag. Raises ArgumentTypeError for one that is not known."""
    words = tuple(text.split(","))
    for word in words:
        if word not in known:
            raise argparse.ArgumentTypeError(f"{word!r} is unknown: use {use}")
    return words


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a device: use auto, cpu, mps, cuda or cuda:N")
    return text
