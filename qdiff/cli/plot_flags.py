"""The flags that the kinds of `python -m qdiff plot` share."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qdiff.cli.flags import device
from qdiff.cli.parser import Parser, number
from qdiff.errors import UserError

if TYPE_CHECKING:
    from qdiff.pipelines.pipeline import Pipeline

SETTINGS = ("steps", "eta", "scale", "seed", "prompts")  # of sampling; without a flag, the model's own


def model(parser: Parser) -> None:
    """Add the flags that name the model and say how it is sampled."""
    add = parser.group("model")
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
    add = parser.group("sampling (default: the settings in the YAML, else 50 steps of deterministic DDIM)")
    add("-n", "--images", default=4, help="number of images", **number(int, 1))
    add("--steps", help="sampling steps", **number(int, 1))
    add("--eta", help="noise of DDIM: 0 is deterministic, 1 is DDPM", **number(float, 0, 1))
    add("--scale", help="classifier-free guidance scale, of a latent model", **number(float, 0, 100))
    add("--seed", default=0, help="image i depends on it and on i", **number(int, 0, 2**32 - 1))
    add(
        "--prompt",
        dest="prompts",
        nargs="+",
        metavar="TEXT",
        help="one or several prompts of a text-to-image model, between which images alternate",
    )
    parser.checks.append(_check_model)


def quantized(parser: Parser, several: bool) -> None:
    """Add the flag that names one or several quantized files."""
    what = "quantized files of the model's network" if several else "quantized file of the model's network"
    add = parser.group("quantized network")
    nargs = {"nargs": "+"} if several else {}
    add("--quantized", type=Path, metavar="FILE", required=True, help=f"{what} (required)", **nargs)


def output(parser: Parser) -> None:
    """Add the flags of the file that is written."""
    add = parser.group("output")
    add("-o", "--out", required=True, type=Path, metavar="FILE", help="plot to write, .svg or .png (required)")
    add("--force", action="store_true", help="replace --out if it exists")


def check_output(args: argparse.Namespace) -> None:
    """Check `--out` before anything is computed. Raises UserError if it is no new .svg or .png."""
    from qdiff.plots.output import check_path

    check_path(args.out, "--out")
    if args.out.exists() and not args.force:
        raise UserError(f"'{args.out}' exists: choose another --out, or add --force to replace it")


def pipeline_of(args: argparse.Namespace) -> "Pipeline":
    """Load the model of the flags in full precision. Raises UserError if a file or a setting does not fit it."""
    from qdiff.pipelines.load import load_pipeline

    path, config = (args.resume_base, args.config) if args.resume_base else (args.config, None)
    given = {name: getattr(args, name) for name in SETTINGS if getattr(args, name) is not None}
    try:
        return load_pipeline(path, config=config, weights=args.ckpt, device=args.device, **given)
    except (TypeError, ValueError) as e:
        raise UserError(f"'{path}' does not go with the flags: {e}") from e


def quantized_of(pipeline: "Pipeline", path: Path) -> "Pipeline":
    """Return the pipeline that samples with a quantized file. Raises UserError if the file does not fit."""
    import copy

    from qdiff.pipelines.quantization import LoadAsWritten

    own = pipeline.with_network(copy.deepcopy(pipeline.network))  # a file is loaded in place
    return pipeline.with_network(LoadAsWritten(path).run(own, Path()))


def names_of(paths: Sequence[Path]) -> dict[str, Path]:
    """Name files: by their stems, those called as runs call them by their folders; or as given if names agree."""
    for name in (_short_name, str):
        found = {name(path): path for path in paths}
        if len(found) == len(paths):
            return found
    raise UserError(f"--quantized names '{_repeated(paths)}' twice: leave one of them out")


def _short_name(path: Path) -> str:
    return path.parent.name if path.name == "quantized.safetensors" else path.stem


def _repeated(paths: Sequence[Path]) -> Path:
    return next(path for i, path in enumerate(paths) if path in paths[:i])


def _check_model(args: argparse.Namespace, given: set[str]) -> None:
    if given.isdisjoint({"--config", "--resume_base"}):
        raise UserError("no model: add --config FILE or -r MODEL")
