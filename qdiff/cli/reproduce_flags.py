"""The flags of `python -m qdiff reproduce`."""

import argparse
import os
from pathlib import Path
from typing import Any

import qdiff
from qdiff.cli.flags import device
from qdiff.cli.parser import Parser, number
from qdiff.errors import UserError

ROOT = Path(os.path.relpath(Path(qdiff.__file__).resolve().parents[1]))
RANDOM = Path("random")  # instead of a file of weights

EXAMPLES = """examples:
  what is missing for the paper's table of CIFAR-10, how to get it, and how long it takes
    python -m qdiff reproduce cifar10 --dry-run
  the table
    python -m qdiff reproduce cifar10 --reference cifar10_train.npz
  two of its rows at full size without any download, few images, a short calibration: no reproduction, and it says so
    python -m qdiff reproduce cifar10 --weights random --rows qdiff_w4a8 --images 4 timesteps=20 cali_iters=2 cali_n=1
  the tables of the bundled models
    python -m qdiff reproduce emoji32 emoji64 emoji64-txt2img
"""


def reproduce_parser() -> Parser:
    """Return the parser of `python -m qdiff reproduce`, for `qdiff.cli.parser.parse`."""
    parser = Parser(
        overrides=True,
        prog="python -m qdiff reproduce",
        usage="%(prog)s TABLE [TABLE ...] [--out DIR] [flags] [argument=value ...]",
        description="Sample and evaluate the rows of tables in configs/quant; the same command again resumes. Words "
        "argument=value\nchange arguments of the sampling script in the rows that have them.",
        epilog=EXAMPLES,
    )
    parser.add_argument("tables", nargs="+", metavar="TABLE", help="folder in --presets, such as cifar10")
    add = parser.group("tables")
    add(
        "--rows",
        nargs="+",
        metavar="ROW",
        help="only these rows, those whose files they need, and the first, in full precision",
    )
    add("--images", help="images per row (default: as published)", **number(int, 1))
    add("--out", type=Path, default=Path("reproduction"), metavar="DIR", help="folder of the results")
    add("--presets", type=Path, default=ROOT / "configs/quant", metavar="DIR", help="folder of the tables")
    add(
        "--dry_run",
        "--dry-run",
        action="store_true",
        help="say what is missing, and how much time, memory and disk each row and all take",
    )
    add = parser.group("instead of what a table states")
    add(
        "--weights",
        type=Path,
        metavar=f"FILE|{RANDOM}",
        help="full-precision weights; random draws them and keeps them in the table's folder",
    )
    add(
        "--calibrated",
        nargs="+",
        type=_assignment,
        metavar="ROW=FILE",
        help="calibrated checkpoints, ours or the original's, to use as they are",
    )
    add("--reference", type=Path, metavar="REF", help="what distributions are compared with, as in evaluate")
    add("--inception", type=Path, metavar="FILE", help="weights of FID's Inception network, as in evaluate")
    add(
        "--features",
        type=Path,
        metavar="FILE",
        excludes=("--inception",),
        help="weights of a small classifier instead, as in evaluate",
    )
    add("--clip", metavar="DIR", help="CLIP model of transformers for the CLIP score: folder or name")
    add("--few", action="store_true", help="compute also what needs more images, under a name that says so")
    add("--device", default="auto", help="where to compute; auto takes cuda, else mps, else cpu", **device())
    return parser


def _assignment(word: str) -> tuple[str, Path]:
    name, sign, value = word.partition("=")
    if not (name and sign and value):
        raise argparse.ArgumentTypeError(f"{word!r} is not ROW=FILE")
    return name, Path(value)


def argument(word: str) -> tuple[str, Any]:
    """Return name and value of `argument=value`, the value as in a preset. Raises UserError if it has none."""
    import yaml

    name, _, text = word.partition("=")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise UserError(f"'{word}' has no valid value: correct it") from e
    if value is None or isinstance(value, dict):
        raise UserError(f"'{word}' has no valid value: correct it")
    return name.removeprefix("--"), value
