"""The flags that the kinds of `python -m qdiff plot` share."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qdiff.cli.flags import check_new, device
from qdiff.cli.parser import Parser, number
from qdiff.cli.recorded import load_run
from qdiff.errors import UserError

if TYPE_CHECKING:
    from qdiff.pipelines.pipeline import Pipeline

SETTINGS = ("steps", "eta", "scale", "seed", "prompts")  # of sampling; without a flag, the model's own


def model(parser: Parser, *, several: bool = False) -> None:
    """Add the flags that name the model, by itself or by one or several runs, and say how it is sampled."""
    add = parser.group("model")
    add(
        "--run",
        type=Path,
        metavar="DIR",
        nargs="+" if several else 1,
        excludes=("--config", "--resume_base", "--ckpt", "--quantized"),
        help=f"{'folders of runs' if several else 'folder of a run'}, instead of the model and its quantized network",
    )
    add("--config", type=Path, metavar="FILE", help="YAML of the model; with -r, of that checkpoint")
    add("-r", "--resume_base", type=Path, metavar="MODEL", help="checkpoint, or folder of a latent model with its YAML")
    add(
        "--ckpt",
        type=Path,
        metavar="FILE",
        excludes=("--resume_base",),
        help="full-precision weights (default: those that the YAML names, or beside it)",
    )
    add("--device", default="auto", help="where to compute; auto takes cuda, else mps, else cpu", **device())
    add = parser.group(
        "sampling (default: the settings of the run, or in the YAML, else 50 steps of deterministic DDIM)"
    )
    add("-n", "--images", default=4, help="number of images", **number(int, 1))
    add("--steps", help="sampling steps", **number(int, 1))
    add("--eta", help="noise of DDIM: 0 is deterministic, 1 is DDPM", **number(float, 0, 1))
    add("--scale", help="classifier-free guidance scale, of a latent model", **number(float, 0, 100))
    add("--seed", help="image i depends on it and on i (default: that of the run, else 0)", **number(int, 0, 2**32 - 1))
    add(
        "--prompt",
        dest="prompts",
        nargs="+",
        metavar="TEXT",
        help="one or several prompts of a text-to-image model, between which images alternate",
    )
    parser.checks.append(_check_model)


def quantized_files(parser: Parser, several: bool) -> None:
    """Add the flag that names one or several quantized files."""
    what = "quantized files of the model's network" if several else "quantized file of the model's network"
    add = parser.group("quantized network")
    nargs = {"nargs": "+"} if several else {}
    add("--quantized", type=Path, metavar="FILE", help=what, **nargs)
    parser.checks.append(_check_quantized)


def output(parser: Parser) -> None:
    """Add the flags of the file that is written."""
    add = parser.group("output")
    add("-o", "--out", required=True, type=Path, metavar="FILE", help="plot to write, .svg or .png (required)")
    add("--force", action="store_true", help="replace --out if it exists")


def check_output(args: argparse.Namespace) -> None:
    """Check `--out` before anything is computed. Raises UserError if it is no new .svg or .png."""
    from qdiff.plots.output import check_path

    check_new(args.out, args.force)
    check_path(args.out, "--out")


def pipeline_of(args: argparse.Namespace) -> "Pipeline":
    """Load the model of the flags in full precision. Raises UserError if a file or a setting does not fit it."""
    from qdiff.pipelines.load import load_pipeline

    path, config = (args.resume_base, args.config) if args.resume_base else (args.config, None)
    given = {name: getattr(args, name) for name in SETTINGS if getattr(args, name) is not None}
    try:
        if args.run:
            path = args.run[0]
            return load_run(path, device=args.device).load_full_precision().with_sampling(**given)
        return load_pipeline(path, config=config, weights=args.ckpt, device=args.device, **given)
    except (TypeError, ValueError) as e:
        raise UserError(f"'{path}' does not go with the flags: {e}") from e


def pipelines_of(args: argparse.Namespace) -> "tuple[Pipeline, dict[str, Pipeline]]":
    """Load the model of the flags in full precision, and with each quantized network, by name.

    Raises:
        UserError: as `pipeline_of`; a quantized file does not fit; a run is in full precision, or samples otherwise
            than the first.
    """
    from qdiff.pipelines.quantization import LoadAsWritten

    if not args.run:
        files = [args.quantized] if isinstance(args.quantized, Path) else args.quantized
        names, pipeline = names_of(files), pipeline_of(args)
        return pipeline, {name: LoadAsWritten(path).applied(pipeline) for name, path in names.items()}
    runs = {name: load_run(path, device=args.device) for name, path in names_of(args.run, "--run").items()}
    first, *others = runs.values()
    for other in others:
        if other.sampling() != first.sampling():
            raise UserError(f"'{other}' samples otherwise than '{first}': give --run those of the same settings")
    pipeline = pipeline_of(args)
    return pipeline, {name: run.quantized(pipeline) for name, run in runs.items()}


def names_of(paths: Sequence[Path], flag: str = "--quantized") -> dict[str, Path]:
    """Name folders by their names, files by their stems, those called as runs call them by their folders.

    If names agree, paths are named as given.
    """
    for name in (_short_name, str):
        found = {name(path): path for path in paths}
        if len(found) == len(paths):
            return found
    raise UserError(f"{flag} names '{_repeated(paths)}' twice: leave one of them out")


def _short_name(path: Path) -> str:
    if path.name == "quantized.safetensors":
        return path.parent.name
    return path.stem if path.suffix == ".safetensors" else path.name


def _repeated(paths: Sequence[Path]) -> Path:
    return next(path for i, path in enumerate(paths) if path in paths[:i])


def _check_model(args: argparse.Namespace, given: set[str]) -> None:
    if given.isdisjoint({"--run", "--config", "--resume_base"}):
        raise UserError("no model: add --run DIR, --config FILE or -r MODEL")


def _check_quantized(args: argparse.Namespace, given: set[str]) -> None:
    if given.isdisjoint({"--run", "--quantized"}):
        raise UserError("no quantized network: add --quantized FILE, or name the model by --run DIR")
