"""Flags of the training scripts."""

import argparse
from dataclasses import fields
from pathlib import Path

from qdiff.cli.parser import Parser, number
from qdiff.training.job import TrainingJob


def bare_parser(script: str, description: str | None, out: str) -> Parser:
    """Return a parser with the flags `--data`, `--run`, `--out` and `--seed`.

    Args:
        script: file name; its stem gives the default of `--run`.
        description: purpose of the script.
        out: help of `--out`.
    """
    parser = Parser(prog=script, usage="python scripts/%(prog)s [flags]", description=description)
    add = parser.group("files")
    add("--data", required=True, type=Path, metavar="FILE", help="images: an .npz with images, names, category")
    add("--run", default=Path("runs") / Path(script).stem, type=Path, metavar="DIR", help="folder of the checkpoints")
    add("--out", required=True, type=Path, metavar="PATH", help=out)
    add = parser.group("training")
    add("--seed", default=0, help="of weights, order of images and noise", **number(int, 0))
    return parser


def training_parser(script: str, description: str | None, out: str) -> Parser:
    """Return a parser with one flag for each field of `TrainingJob`; arguments as for `bare_parser`."""
    parser = bare_parser(script, description, out)
    add = parser.group("model")
    add("--config", required=True, type=Path, metavar="FILE", help="model and training settings (YAML)")
    add("--init", type=Path, metavar="FILE", help="weights to start from instead of random ones")
    add("--devices", default=1, help="GPUs, or CPU processes, that share a batch", **number(int, 1))
    return parser


def job_of(args: argparse.Namespace) -> TrainingJob:
    """Return the job of a parsed command line."""
    return TrainingJob(**{field.name: getattr(args, field.name) for field in fields(TrainingJob)})
