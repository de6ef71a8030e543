"""`python -m qdiff reproduce`: make tables of published values again, beside the values obtained."""

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import qdiff
from qdiff.cli.flags import device
from qdiff.cli.parser import Parser, number, parse
from qdiff.cli.table_commands import check, method_of
from qdiff.cli.table_plan import show_plan
from qdiff.config.presets import Table, load_table
from qdiff.errors import UserError
from qdiff.evaluation.choices import Choices
from qdiff.evaluation.experiments import Method
from qdiff.sampling.rank import Rank

ROOT = Path(os.path.relpath(Path(qdiff.__file__).resolve().parents[1]))

EXAMPLES = """examples:
  what is missing for the paper's table of CIFAR-10, how to get it, and how long it takes
    python -m qdiff reproduce cifar10 --dry-run
  the table
    python -m qdiff reproduce cifar10 --reference cifar10_train.npz
  two of its rows and what they need, few images, a short calibration: no reproduction, and it says so
    python -m qdiff reproduce cifar10 --rows fp qdiff_w4a8 --images 64 timesteps=20 cali_iters=20 cali_n=8
  the tables of the bundled models
    python -m qdiff reproduce emoji32 emoji64 emoji64-txt2img
"""


def _parser() -> Parser:
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
    add("--dry_run", "--dry-run", action="store_true", help="say what is missing, and print the plan of each row")
    add = parser.group("instead of what a table states")
    add("--weights", type=Path, metavar="FILE", help="full-precision weights")
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


def main(argv: Sequence[str]) -> None:
    """Make the tables of the command line. Ranks of a job share the images of each row; rank 0 does the rest.

    Raises:
        UserError: a table, row or argument is unknown; a preset is wrong; a file is missing; or a row's run fails.
    """
    args = parse(_parser(), argv)
    words = [word for word in args.tables if "=" in word] + args.overrides
    names = [word for word in args.tables if "=" not in word]
    chosen = Choices(
        dict(_argument(word) for word in words),
        args.images,
        args.weights,
        args.reference,
        bool(args.features or args.inception),
        dict(args.calibrated or ()),
    )
    for flag in ("weights", "reference", "inception", "features"):
        if (path := getattr(args, flag)) and not path.exists():
            raise UserError(f"--{flag}: no '{path}': give a path that exists")
    stated = [load_table(args.presets, name, ROOT, args.out / name) for name in dict.fromkeys(names)]
    if args.rows:
        stated = [table.selected(args.rows) for table in stated]
    tables = [check(table, chosen) for table in stated]
    if not args.dry_run:
        _make(list(zip(stated, tables)), args, chosen, shlex.join(["python", "-m", "qdiff", "reproduce", *argv]))
    elif Rank.from_environment().first:
        for table in tables:
            show_plan(table, args.out / table.name, chosen, ROOT, args.device)


def _make(tables: Sequence[tuple[Table, Table]], args: argparse.Namespace, chosen: Choices, command: str) -> None:
    """Sample, evaluate and write tables, each given as stated and with the choices."""
    rank = Rank.from_environment()
    for stated, table in tables:
        for method in _methods(table, args):
            method.run(shown=rank.first)  # its script reads the rank too
        if rank.alone:
            _evaluate(stated, table, args, chosen, command)
    if rank.first and not rank.alone:  # at the end, because the others would wait for it in the next table
        for stated, table in tables:
            _evaluate(stated, table, args, chosen, command)


def _methods(table: Table, args: argparse.Namespace) -> list[Method]:
    return [method_of(table, row, args.out / table.name, ROOT, args.device) for row in table.rows]


def _evaluate(stated: Table, table: Table, args: argparse.Namespace, chosen: Choices, command: str) -> None:
    """Evaluate a table that is sampled, and write it; `stated` is the table without the choices."""
    from qdiff.evaluation.deviations import deviations
    from qdiff.evaluation.reproduction import Reproduced, Reproduction, text, write_reproduction
    from qdiff.files.refusals import explaining
    from qdiff.files.version import environment
    from qdiff.pipelines.evaluate import evaluate

    options: dict[str, Any] = {
        "reference": args.reference or table.reference.file or None,
        "inception": args.inception,
        "features": args.features or (None if args.inception else table.features or None),
        "clip": args.clip,
        "few": args.few,
        "device": args.device,
        "progress": None,
    }
    out, methods = args.out / table.name, _methods(table, args)
    rows = []
    for row, method in zip(table.rows, methods):
        found = evaluate(method.folder, full_precision=methods[0].folder, published=row.published, **options)
        grid = method.folder / "grid.png"
        shown = grid if grid.exists() else None
        rows.append(Reproduced(row.name, row.title, row.source, method.command, row.published, found, shown))
    with explaining(out, "--out"):
        made = Reproduction(table.name, table.title, command, rows, deviations(stated, chosen, rows), environment())
        files = write_reproduction(out, made)
    print(f"\n{text(made)}\nwritten: {', '.join(map(str, files))}")


def _assignment(word: str) -> tuple[str, Path]:
    name, sign, value = word.partition("=")
    if not (name and sign and value):
        raise argparse.ArgumentTypeError(f"{word!r} is not ROW=FILE")
    return name, Path(value)


def _argument(word: str) -> tuple[str, Any]:
    """Return name and value of `argument=value`, the value as in a preset."""
    import yaml

    name, _, text = word.partition("=")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise UserError(f"'{word}' has no valid value: correct it") from e
    if value is None or isinstance(value, dict):
        raise UserError(f"'{word}' has no valid value: correct it")
    return name.removeprefix("--"), value
