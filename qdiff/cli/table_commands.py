"""Rows of a table as command lines of the sampling scripts."""

import shlex
import time
from dataclasses import dataclass, replace
from pathlib import Path

from qdiff.cli.sample import perform
from qdiff.cli.scripts import SCRIPTS, Script, words
from qdiff.config.tables import Arguments, Row, Table
from qdiff.errors import UserError, suggestion
from qdiff.evaluation.choices import Choices


@dataclass(frozen=True)
class Command:
    """The command line of a row.

    Args:
        title: what it is called.
        script, root: the script, and the folder that has it.
        arguments: of the script.
    """

    title: str
    script: Script
    root: Path
    arguments: Arguments

    @property
    def folder(self) -> Path:
        """The folder of its run."""
        return Path(str(self.arguments[self.script.folder]))

    def __str__(self) -> str:
        """The command line, as typed."""
        return shlex.join(["python", str(self.root / self.script.file), *words(self.arguments)])

    def run(self, *, shown: bool = True) -> None:
        """Do what the command does, and print it and its time if they are to be shown. Raises UserError if it fails.

        In this process, for starting another one takes seconds, as long as some rows.
        """
        if shown:
            print(f"\n{self.title}\n  {self}", flush=True)
        start = time.perf_counter()
        try:
            flags = self.script.parse(self.arguments)
            perform(self.script.run(flags), flags)
        except UserError as e:
            raise UserError(f"'{self.title}': {e}") from e
        if shown:
            print(f"  {time.perf_counter() - start:.0f} s", flush=True)


def check(table: Table, chosen: Choices) -> Table:
    """Return the table with the choices of the user.

    Raises:
        UserError: a choice does not fit the table, or the script does not accept a row's arguments.
    """
    script, number = SCRIPTS[table.script], chosen.images or table.images
    if script.images is None and chosen.images:
        raise UserError(f"--images: those of table '{table.name}' come from prompts: give from-file=FILE and n_iter=N")
    table = table.with_arguments(chosen.arguments)
    names = [row.name for row in table.rows]
    for name, path in chosen.calibrated.items():
        if name not in names[1:]:
            hint = suggestion(name, names[1:]) or f"use {', '.join(names[1:])}"
            raise UserError(f"--calibrated: '{name}' is no quantized row of table '{table.name}': {hint}")
        if not path.is_file():
            raise UserError(f"--calibrated: no '{path}': give a calibrated checkpoint")
    rows = []
    for row in table.rows:
        arguments = {**row.arguments, **({script.images: number} if script.images else {})}
        if chosen.weights:
            arguments.pop("use_pretrained", None)
            arguments[table.weights.argument] = chosen.weights
        if row.name in chosen.calibrated:
            arguments |= {"resume": True, "cali_ckpt": chosen.calibrated[row.name]}
            for key in ("resume_w", "correct_bias", "cali_data_path"):  # of calibrating
                arguments.pop(key, None)
        rows.append(replace(row, arguments=arguments))
        try:
            script.parse(arguments)
        except UserError as e:
            raise UserError(f"table '{table.name}', row '{row.name}': {e}") from e
    return replace(table, rows=tuple(rows))


def command_of(table: Table, row: Row, out: Path, root: Path, device: str = "auto") -> Command:
    """Return the command line of a row, whose folder is below `out`, by the scripts below `root`."""
    script, folder = SCRIPTS[table.script], out / row.name
    arguments = {**row.arguments, script.folder: folder, **({} if device == "auto" else {"device": device})}
    return Command(f"{table.name}: {row.title}", script, root, arguments)
