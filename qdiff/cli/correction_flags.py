"""The flags of the correction of the predicted noise."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

from qdiff.cli.flags import PTQ, known_words
from qdiff.cli.parser import Parser, choice, number
from qdiff.errors import UserError

PARTS = ("slope", "bias", "variance")  # of `qdiff.correction.parts`, which imports torch


def correction(parser: Parser) -> None:
    """Add the flags of the correction of the predicted noise."""
    add = parser.group("correction (PTQD)", needs=PTQ)
    add(
        "--correct",
        type=_correction,
        metavar="auto|FILE",
        help="correct what quantization does to the predicted noise: auto fits on images of calibration, and keeps the "
        "file in the run's folder; or a file that was fitted for this network and sampling",
    )
    add_fit = partial(add, needs=(*PTQ, "--correct"))
    fitting(add_fit, "correct_")
    add_fit(
        "--correct_interpolate",
        action="store_true",
        help="accept a file that was fitted for other steps, and interpolate it over log-SNR",
    )
    parser.checks.append(_check_correction)


def fitting(add: Callable[..., None], prefix: str) -> None:
    """Add the flags of a fit of a correction; their names begin with a prefix, in the namespace with `correct_`."""
    add(
        f"--{prefix}fit",
        dest="correct_fit",
        default="ptqd",
        help="ptqd: on trajectories of full precision, as in the paper; trajectory: on the quantized network's own, "
        "step by step",
        **choice("ptqd", "trajectory"),
    )
    add(
        f"--{prefix}n",
        dest="correct_n",
        default=64,
        help="images, half to fit on, half to judge by which parts help",
        **number(int, 4),
    )
    add(
        f"--{prefix}parts",
        dest="correct_parts",
        type=_parts,
        metavar="PART,PART,...",
        help="parts that may be used: slope, bias and variance of the sampler's noise (default: all)",
    )


def _check_correction(args: argparse.Namespace, given: set[str]) -> None:
    """Refuse flags of a fit with a file, and that of a file with a fit."""
    fits = {"--correct_fit", "--correct_n", "--correct_parts"}
    other = given & ({"--correct_interpolate"} if args.correct == "auto" else fits)
    if other:
        flag = sorted(other)[0]
        raise UserError(f"{flag} does not go with --correct {args.correct}: leave it out")


def _correction(text: str) -> str | Path:
    return text if text == "auto" else Path(text)


def _parts(text: str) -> tuple[str, ...]:
    return known_words(text, PARTS, f"{', '.join(PARTS)}, with commas")
