"""Rows of a table as command lines of the sampling scripts."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from qdiff.cli.ddim_flags import ddim_parser
from qdiff.cli.ldm_flags import ldm_parser
from qdiff.cli.parser import Parser, parse
from qdiff.cli.txt2img_flags import txt2img_parser
from qdiff.config.presets import Arguments, Row, Table
from qdiff.errors import UserError, suggestion
from qdiff.evaluation.choices import Choices
from qdiff.evaluation.experiments import Method


@dataclass(frozen=True)
class Script:
    """A sampling script: its file, its parser, and its arguments for the folder and, if it has one, for the images."""

    file: str
    parser: Callable[[], Parser]
    folder: str
    images: str | None


SCRIPTS = {
    "ddim": Script("scripts/sample_diffusion_ddim.py", ddim_parser, "logdir", "max_images"),
    "ldm": Script("scripts/sample_diffusion_ldm.py", ldm_parser, "logdir", "n_samples"),
    "txt2img": Script("scripts/txt2img.py", txt2img_parser, "outdir", None),  # images come from prompts
}


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
        _parse(script, rows[-1], table)
    return replace(table, rows=tuple(rows))


def method_of(table: Table, row: Row, out: Path, root: Path, device: str = "auto") -> Method:
    """Return the run of a row, in its folder below `out`, by the scripts below `root`."""
    script, folder = SCRIPTS[table.script], out / row.name
    arguments = {**row.arguments, script.folder: folder, **({} if device == "auto" else {"device": device})}
    return Method(f"{table.name}: {row.title}", folder, [str(root / script.file), *words(arguments)])


def _parse(script: Script, row: Row, table: Table) -> None:
    """Parse a row's command line. Raises UserError, which names the row, if the script does not accept it."""
    try:
        parse(script.parser(), words(row.arguments))
    except UserError as e:
        raise UserError(f"table '{table.name}', row '{row.name}': {e}") from e
