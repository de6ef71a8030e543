"""`python -m qdiff reproduce`: make tables of published values again, beside the values obtained."""

import argparse
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdiff.cli.parser import parse
from qdiff.cli.reproduce_flags import RANDOM, ROOT, argument, reproduce_parser
from qdiff.cli.scripts import SCRIPTS
from qdiff.cli.table_commands import Command, check, command_of
from qdiff.cli.table_plan import show_plan
from qdiff.cli.table_results import section_of
from qdiff.config.presets import load_table
from qdiff.config.tables import Table
from qdiff.errors import UserError
from qdiff.evaluation.choices import Choices
from qdiff.sampling.rank import Rank

if TYPE_CHECKING:
    from qdiff.evaluation.results import Section

RANDOM_FILE = "random_weights/model.safetensors"  # in the folder of a table


def main(argv: Sequence[str]) -> None:
    """Make the tables of the command line. Ranks of a job share the images of each row; rank 0 does the rest.

    Raises:
        UserError: a table, row or argument is unknown; a preset is wrong; a file or package is missing; or a row's run
            fails.
    """
    args = parse(reproduce_parser(), argv)
    given = args.tables, args.rows or ()  # which swallow words that follow them
    arguments = dict(argument(word) for words in (*given, args.overrides) for word in words if "=" in word)
    names, rows = (dict.fromkeys(word for word in words if "=" not in word) for words in given)
    for flag in ("weights", "reference", "inception", "features"):
        path = getattr(args, flag)
        if path and not path.exists() and not (flag == "weights" and path == RANDOM):
            raise UserError(f"--{flag}: no '{path}': give a path that exists")
    stated = [load_table(args.presets, name, ROOT, args.out / name) for name in names]
    if rows:
        stated = [table.selected([*rows]) for table in stated]
    choices = [_choices(args, arguments, table) for table in stated]
    tables = [check(table, chosen) for table, chosen in zip(stated, choices)]
    rank = Rank.from_environment()
    if args.dry_run:
        for table, chosen in zip(tables, choices):
            if rank.first:
                show_plan(table, args.out / table.name, chosen, ROOT, args.device)
        return
    _check_installed(tables)
    sampled: Iterable[list[Command]] = (_sample(table, chosen, args, rank) for table, chosen in zip(tables, choices))
    if not rank.alone:  # all tables before the first evaluation, for which the other ranks would wait
        sampled = list(sampled)
    if rank.first:
        command = shlex.join(["python", "-m", "qdiff", "reproduce", *argv])
        made = zip(stated, tables, choices, sampled)
        sections = [_evaluate(before, table, chosen, runs, args, command) for before, table, chosen, runs in made]
        if len(sections) > 1:
            _write(args.out, f"Tables {', '.join(names)}", sections)


def _choices(args: argparse.Namespace, arguments: Mapping[str, Any], table: Table) -> Choices:
    """Return what the flags say instead of a table."""
    drawn = args.weights == RANDOM
    return Choices(
        arguments,
        args.images,
        args.out / table.name / RANDOM_FILE if drawn else args.weights,
        drawn,
        args.reference,
        bool(args.features or args.inception),
        dict(args.calibrated or ()),
    )


def _check_installed(tables: Sequence[Table]) -> None:
    """Raise UserError if what comes after hours of sampling will fail: a package is missing, or a metric is unknown."""
    from qdiff.evaluation.kinds import check_names
    from qdiff.pipelines.evaluate import check_installed as check_evaluation
    from qdiff.plots.style import check_installed as check_plots

    check_evaluation()
    check_plots()
    for table in tables:
        check_names(f"table '{table.name}', metrics", table.metrics)


def _sample(table: Table, chosen: Choices, args: argparse.Namespace, rank: Rank) -> list[Command]:
    """Run the rows of a table; return what was run. Raises UserError if one fails."""
    if chosen.random:
        from qdiff.evaluation.results import NO_REPRODUCTION

        if rank.first:
            print(f"{NO_REPRODUCTION}: the weights of table '{table.name}' are random, '{chosen.weights}'", flush=True)
        _draw_weights(table, chosen, args.device)
    runs = [command_of(table, row, args.out / table.name, ROOT, args.device) for row in table.rows]
    for run in runs:
        run.run(shown=rank.first)  # its script reads the rank too
    return runs


def _evaluate(
    stated: Table, table: Table, chosen: Choices, runs: Sequence[Command], args: argparse.Namespace, command: str
) -> "Section":
    """Evaluate and write a table; `stated` is the table without the choices."""
    from qdiff.evaluation.report import write_comparison
    from qdiff.files.refusals import explaining

    out = args.out / table.name
    options = {
        "reference": args.reference or table.reference.file or None,
        "inception": args.inception,
        "features": args.features or (None if args.inception else table.features or None),
        "clip": args.clip,
        "metrics": None if chosen.own_features else table.metrics or None,
        "few": args.few or table.few,
        "device": args.device,
        "progress": None,
    }
    with explaining(out, "--out"):
        section = section_of(stated, table, chosen, runs, options, command)
        if len(section.images) > 1:
            write_comparison(out, section)
    _write(out, table.title, [section])
    return section


def _draw_weights(table: Table, chosen: Choices, device: str) -> None:
    """Make the random weights of a table unless they are there; all ranks make the same.

    Raises:
        UserError: they cannot be written.
    """
    from qdiff.files.refusals import explaining
    from qdiff.pipelines.random_weights import write_random_weights

    path, script = chosen.weights, SCRIPTS[table.script]
    assert path is not None, "a path comes with the choice"
    if not path.exists():
        flags = script.parse({**table.rows[0].arguments, "device": device, "dry_run": True})
        with explaining(path, "--out"):
            write_random_weights(script.run(flags).pipeline, path)


def _write(folder: Path, title: str, sections: Sequence["Section"]) -> None:
    """Write sections to a folder, and print them or, of several that were printed, where they are."""
    from qdiff.evaluation.report import text, write_report
    from qdiff.files.refusals import explaining
    from qdiff.files.version import environment

    with explaining(folder, "--out"):
        files = write_report(folder, title, sections, environment())
    if len(sections) == 1:
        print(f"\n{text(sections[0])}")
    print(f"written: {', '.join(map(str, files))}")
