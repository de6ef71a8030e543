"""The groups of flags that the scripts share, each flag declared once."""

import argparse
import re
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

from qdiff.cli.parser import Parser, choice, number
from qdiff.errors import UserError
from qdiff.files.refusals import explaining

PTQ = ("--ptq",)
ACTIVATIONS = ("--ptq", "--quant_act")
PARTS = ("slope", "bias", "variance")  # of `qdiff.correction.parts`, which imports torch
KEPT = ("ends", "time")  # names in `qdiff.adapters.Adapter.sensitive`


def running(parser: Parser, *folder_names: str, folder: Path, seed: int | None) -> None:
    """Add the flags of the run itself.

    Args:
        parser: the parser.
        folder_names: spellings of the flag for the run's folder.
        folder: its default.
        seed: default of `--seed`; None makes the flag required.
    """
    add = parser.group("run")
    add(
        *folder_names,
        dest="logdir",
        type=Path,
        default=folder,
        metavar="DIR",
        help="folder of the run; the same command again resumes it",
    )
    add(
        "--seed",
        default=seed,
        required=seed is None,
        help="random seed; image i depends on it and on i, not on the batch size",
        **number(int, 0, 2**32 - 1),  # what numpy's generators take
    )
    add(
        "--device",
        default="auto",
        help="where to compute; auto takes cuda, else mps, else cpu",
        **device(),
    )
    add("--dry_run", "--dry-run", action="store_true", help="print the plan (blocks, sizes, memory, time) and exit")
    add("--verbose", action="store_true", help="log in more detail, to the console as well")


def check_new(out: Path, force: bool) -> None:
    """Check a file that is to be written. Raises UserError if it is no file, or exists and `force` is not given."""
    with explaining(out, "--out"):
        if out.is_dir():
            raise UserError(f"'{out}' is a folder: give --out the name of a file")
        if not out.exists():
            return
        if not out.is_file():  # a device, which would be replaced by a file
            raise UserError(f"'{out}' is not a file: choose another --out")
        if not force:
            raise UserError(f"'{out}' exists: choose another --out, or add --force to replace it")


def device() -> dict[str, Any]:
    """Return the options of a flag whose value is a device."""
    return {"type": _device, "metavar": "auto|cpu|cuda|cuda:N|mps"}


def quantization(parser: Parser) -> None:
    """Add the flags that say what is quantized and how."""
    add = parser.group("quantization")
    add("--ptq", action="store_true", help="quantize the network; without it everything runs in full precision")
    add(
        "--quant_mode",
        default="qdiff",
        needs=PTQ,
        help="qdiff: learn roundings and step sizes; gptq: find weights in closed form, without learning; "
        "squant: round weights so that errors cancel, without data; linear: round to nearest; the last two with "
        "min-max ranges",
        **choice("qdiff", "gptq", "squant", "linear"),
    )
    add("--weight_bit", default=8, needs=PTQ, help="bits per weight", **number(int, 2, 8))
    add("--quant_act", action="store_true", needs=PTQ, help="quantize activations too")
    add("--act_bit", default=8, needs=ACTIVATIONS, help="bits per activation", **number(int, 2, 8))
    add(
        "--sm_abit",
        default=8,
        needs=ACTIVATIONS,
        help="bits per attention weight, after the softmax",
        **number(int, 2, 16),
    )
    add("--a_sym", action="store_true", needs=ACTIVATIONS, help="make activation ranges symmetric around zero")
    add(
        "--a_min_max",
        action="store_true",
        needs=ACTIVATIONS,
        help="take activation ranges from the extremes instead of a search",
    )
    add(
        "--act_groups",
        default=1,
        needs=ACTIVATIONS,
        excludes=("--resume",),
        help="groups of consecutive sampling steps, each with activation ranges of its own; at most --cali_st",
        **number(int, 1),
    )
    add(
        "--keep8",
        default=(),
        type=_words,
        metavar="ends|time|ends,time",
        needs=PTQ,
        excludes=("--resume", "--resume_w"),
        help="layers that keep 8 bits, weights and activations: the first and the last one (ends), those of the time "
        "embedding (time)",
    )
    add(
        "--mixed_precision",
        default=(),
        type=_fewer_bits,
        metavar="BITS[,BITS...]",
        needs=ACTIVATIONS,
        excludes=("--resume",),
        help="fewer bits than --act_bit, such as 4 or 4,6, that activations have at the sampling steps where these are "
        "enough; the steps are chosen first, by PTQD's criterion or for a --bops_budget",
    )
    add(
        "--bops_budget",
        needs=("--mixed_precision",),
        help="choose the steps so that the predicted error of the image is least, within this share of the bit "
        "operations that --act_bit at all steps takes",
        **number(float, 0.01, 1),
    )
    add(
        "--snr_ratio",
        default="norm",
        needs=("--mixed_precision",),
        excludes=("--bops_budget",),
        help="PTQD's criterion compares |eps| / |error| with the signal-to-noise ratio of the forward process (norm, "
        "as printed), or the square of the former (power)",
        **choice("norm", "power"),
    )
    add(
        "--split",
        action="store_true",
        needs=PTQ,
        help="quantize shortcut layers in two slices: channels from the layer below and from the skip connection",
    )
    add(
        "--cond",
        action="store_true",
        help="accepted for the paper's commands; calibration always includes the conditions",
    )
    add(
        "--resume",
        action="store_true",
        needs=(*PTQ, "--cali_ckpt"),
        help="do not calibrate: use --cali_ckpt as it is",
    )
    add(
        "--resume_w",
        action="store_true",
        needs=(*ACTIVATIONS, "--cali_ckpt"),
        excludes=("--resume",),
        help="take the weights of --cali_ckpt and calibrate only the activations",
    )
    add(
        "--cali_ckpt",
        type=Path,
        metavar="FILE",
        needs=(*PTQ, "--resume or --resume_w"),
        help="calibrated checkpoint, ours or the original's",
    )
    add(
        "--low_memory",
        action="store_true",
        needs=(*PTQ, "--resume"),
        help="keep weights packed and dequantize them in every call: slower, an eighth of the memory at 4 bits",
    )
    parser.checks.append(_check_fewer_bits)


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


def calibration(parser: Parser) -> None:
    """Add the flags of the calibration data and of the reconstruction."""
    add = parser.group("calibration", needs=PTQ)
    add(
        "--cali_data_path",
        type=Path,
        metavar="FILE",
        help="calibration data (default: collect them from the model's own sampling, keep them in the run's folder)",
    )
    add(
        "--cali_st",
        default=1,
        help="samples that each image gives, at steps spread over its sampling",
        **number(int, 1),
    )
    add(
        "--cali_n",
        default=1024,
        help="images of which data are collected; together they are at all steps",
        **number(int, 1),
    )
    add("--cali_batch_size", default=32, help="samples per iteration", **number(int, 1))
    add("--cali_iters", default=20000, help="iterations per block, rounding of weights", **number(int, 1))
    add(
        "--cali_lr_w",
        help="learning rate, rounding of weights (default: 20 / cali_iters, at least 0.001 and at most 0.01)",
        **number(float, 1e-8, 1),
    )
    add(
        "--correct_bias",
        action="store_true",
        excludes=("--resume",),
        help="at the end, correct biases so that each layer's output has its mean in full precision; worth most after "
        "few iterations",
    )
    add(
        "--cali_spectrum_n",
        default=1,
        help="images, with --quant_mode gptq or --correct_bias, on which it is measured what errors do to the image, "
        "so that they are weighted by it; 0 weighs all errors alike",
        **number(int, 0),
    )
    add(
        "--cali_memory",
        help="GiB for the captured inputs and outputs of a block and, if there is room, for cached outputs of finished "
        "blocks (default: half of the memory that computing leaves free)",
        **number(float, 0.01, 65536),
    )
    add(
        "--cali_devices",
        default=1,
        help="GPUs, from --device on, or CPU processes, that share the learning of blocks (--quant_mode qdiff); each "
        "captures all data itself, within its part of --cali_memory",
        **number(int, 1),
    )
    add_act = partial(add, needs=ACTIVATIONS)
    add_act("--cali_iters_a", default=5000, help="iterations per block, activation step sizes", **number(int, 1))
    add_act("--cali_lr", default=4e-4, help="learning rate, activation step sizes", **number(float, 1e-8, 1))
    add_act("--cali_p", default=2.4, help="exponent p of the L_p loss, activation step sizes", **number(float, 1, 10))
    add_act("--cali_range_n", default=256, help="samples used to search activation ranges", **number(int, 1))
    add_act("--running_stat", action="store_true", help="take activation ranges from running averages over the data")
    add_act(
        "--rs_sm_only",
        action="store_true",
        needs=(*ACTIVATIONS, "--running_stat"),
        help="use running averages only for attention weights, after the softmax",
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


def _words(text: str) -> tuple[str, ...]:
    return _known(text, KEPT, " or ".join(KEPT) + ", or both with a comma")


def _parts(text: str) -> tuple[str, ...]:
    return _known(text, PARTS, f"{', '.join(PARTS)}, with commas")


def _known(text: str, known: Collection[str], use: str) -> tuple[str, ...]:
    words = tuple(text.split(","))
    for word in words:
        if word not in known:
            raise argparse.ArgumentTypeError(f"{word!r} is unknown: use {use}")
    return words


def _fewer_bits(text: str) -> tuple[int, ...]:
    convert = number(int, 2, 7)["type"]
    return tuple(sorted({convert(word) for word in text.split(",")}))


def _check_fewer_bits(args: argparse.Namespace, given: set[str]) -> None:
    bits = max(args.mixed_precision, default=0)
    if bits >= args.act_bit:
        raise UserError(
            f"--mixed_precision {bits} is not less than --act_bit {args.act_bit}, the most bits of a step: lower the "
            "one or raise the other"
        )


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a device: use auto, cpu, mps, cuda or cuda:N")
    return text
