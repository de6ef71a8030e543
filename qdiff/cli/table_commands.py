"""Rows of a table as command lines of the sampling scripts."""

import shlex
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from qdiff.cli import sample_ddim, sample_ldm, sample_txt2img
from qdiff.cli.ddim_flags import ddim_parser
from qdiff.cli.ldm_flags import ldm_parser
from qdiff.cli.parser import Parser, parse
from qdiff.cli.txt2img_flags import txt2img_parser
from qdiff.config.tables import Arguments, Row, Table
from qdiff.errors import UserError, suggestion
from qdiff.evaluation.choices import Choices

if TYPE_CHECKING:
    from qdiff.pipelines.output import Output
    from qdiff.pipelines.pipeline import Pipeline


@dataclass(frozen=True)
class Script:
    """A sampling script.

    Attributes:
        file: below the root of the repository.
        parser: returns its parser.
        pipeline: its flags -> the pipeline that they describe.
        output: its flags -> the files that it writes.
        folder: argument that names the folder of the run.
        images: argument that gives the number of images; None if it has none, because they come from prompts.
    """

    file: str
    parser: Callable[[], Parser]
    pipeline: "Callable[[Namespace], Pipeline]"
    output: "Callable[[Namespace], Output]"
    folder: str = "logdir"
    images: str | None = None

    def parse(self, arguments: Arguments) -> Namespace:
        """Return the flags of a row. Raises UserError if the script does not accept them."""
        return parse(self.parser(), words(arguments))


SCRIPTS = {
    "ddim": Script(
        "scripts/sample_diffusion_ddim.py",
        ddim_parser,
        sample_ddim.pipeline_of,
        sample_ddim.output_of,
        images="max_images",
    ),
    "ldm": Script(
        "scripts/sample_diffusion_ldm.py", ldm_parser, sample_ldm.pipeline_of, sample_ldm.output_of, images="n_samples"
    ),
    "txt2img": Script(
        "scripts/txt2img.py", txt2img_parser, sample_txt2img.pipeline_of, sample_txt2img.output_of, "outdir"
    ),
}


@dataclass(frozen=True)
class Command:
    """The command line of a row: what it is called, the folder of its run, and the arguments of `python`."""

    title: str
    folder: Path
    words: list[str]

    def __str__(self) -> str:
        """The command line, as typed."""
        return shlex.join(["python", *self.words])

    def run(self) -> None:
        """Print and run the command. Raises UserError if it fails."""
        print(f"\n{self.title}\n  {self}", flush=True)
        start = time.perf_counter()
        status = subprocess.run([sys.executable, *self.words], check=False).returncode
        if status:
            raise UserError(
                f"'{self.title}' ended with status {status}: see its output above; to start afresh, give another --out"
            )
        print(f"  {time.perf_counter() - start:.0f} s", flush=True)


def words(arguments: Arguments) -> list[str]:
    """Return the words of a command line: true stands for a flag alone, a list for values with commas."""
    found: list[str] = []
    for key, value in arguments.items():
        if value is False or value is None:
            continue
        found.append(f"--{key}")
        if isinstance(value, list):
            found.append(",".join(map(str, value)))
        elif value is not True:
            found.append(str(value))
    return found


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
    return Command(f"{table.name}: {row.title}", folder, [str(root / script.file), *words(arguments)])
