"""Runs from their folders: the flags that a folder recorded become the run that its script made of them."""

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from qdiff.cli.parser import Flag, Parser
from qdiff.cli.scripts import SCRIPTS
from qdiff.errors import UserError
from qdiff.evaluation.run_protocol import CONFIG, read_config, section

if TYPE_CHECKING:
    from qdiff.pipelines.finished import FinishedRun
    from qdiff.pipelines.run import Run

OVERRIDES = "overrides"  # words that belong to no flag
READ = ("config", "resume_base", "from_file", "cali_prompts")  # paths that a run needs at once
# Flags of the machine that made the run, which this one need not be
MACHINE = ("backend", "cali_devices", "cali_memory", "verbose")


def load_run(folder: str | Path, *, device: str = "auto") -> "FinishedRun":
    """Return the run of a folder, for its pipeline and for `evaluate`; it is read when it is first needed.

    Args:
        folder: as `-l` or `--outdir` of the sampling scripts named it. Relative paths that its flags had must lead to
            the same files now.
        device: see `qdiff.load_pipeline`.

    Raises:
        TypeError: `folder` is not a path.
    """
    from qdiff.pipelines.finished import FinishedRun
    from qdiff.pipelines.paths import as_path

    path = as_path("folder", folder)
    return FinishedRun(path, partial(recorded_run, path, device))


def recorded_run(folder: Path, device: str) -> "Run":
    """Return the run of a folder, of which nothing is loaded.

    Raises:
        UserError: its configuration is missing or none of a sampling script, or a file that it names is missing.
    """
    path = folder / CONFIG
    config = read_config(path)
    flags = {**section(config, "flags"), **section(config, "free")}
    for script in SCRIPTS.values():
        parser = script.parser()
        required = {flag.action.dest for flag in parser.flags if flag.required}
        if flags and required <= flags.keys() <= {*_flags(parser), OVERRIDES}:
            args = restored(parser, flags | {"logdir": str(folder), "device": device}, path)
            _check_paths(args, path)
            return script.run(args)
    raise UserError(f"'{path}' does not have the flags of a sampling script: give the folder of a run")


def _check_paths(args: argparse.Namespace, path: Path) -> None:
    for name in READ:
        given = getattr(args, name, None)
        if given and not given.exists():
            raise UserError(f"'{path}', {name}: no '{given}' here: work in the folder in which the run was made")


def restored(parser: Parser, recorded: Mapping[str, object], path: Path) -> argparse.Namespace:
    """Return the namespace that recorded values were, with the defaults of flags that are not among them.

    Args:
        parser: the flags.
        recorded: name of a flag in the namespace -> its value, as YAML keeps it.
        path: where they are recorded, for error messages.

    Raises:
        UserError: a value is none of its flag's.
    """
    args, flags = argparse.Namespace(), _flags(parser)
    for name, flag in flags.items():
        known = name in recorded and name not in MACHINE
        try:
            setattr(args, name, _value(flag, recorded[name]) if known else flag.action.default)
        except (argparse.ArgumentTypeError, TypeError, ValueError) as e:
            raise UserError(f"'{path}', {name}: {e}: give another folder, or make the run again") from e
    setattr(args, OVERRIDES, [str(word) for word in _listed(recorded.get(OVERRIDES))])
    given = {flag.name for name, flag in flags.items() if getattr(args, name) != flag.action.default}
    for check in parser.checks:
        check(args, given)
    return args


def _flags(parser: Parser) -> dict[str, Flag]:
    return {flag.action.dest: flag for flag in parser.flags}


def _value(flag: Flag, recorded: object) -> object:
    """Convert a recorded value as the flag converts its word. Raises what its type raises."""
    default, convert = flag.action.default, flag.action.type
    if recorded == default or (isinstance(default, tuple) and recorded == list(default)):
        return default
    if flag.action.nargs == 0 or convert is None:
        if not isinstance(recorded, str if flag.action.nargs != 0 else bool):
            raise TypeError(f"{recorded!r} is no value of {flag.name}")
        return recorded
    assert callable(convert)
    return convert(",".join(map(str, _listed(recorded))))


def _listed(recorded: object) -> list:
    if recorded is None:
        return []
    return recorded if isinstance(recorded, list) else [recorded]
