"""The flags that say what is quantized and how, and how that is calibrated."""

import argparse
from functools import partial
from pathlib import Path

from qdiff.cli.flags import ACTIVATIONS, PTQ, known_words
from qdiff.cli.parser import Parser, choice, number
from qdiff.errors import UserError

SIMULATED = "simulated"
BACKENDS = ("torch", "onnxruntime", "openvino", "auto")  # of `qdiff.backends`, which imports torch

PRESETS = {"tensorrt": ("a_sym", "w_sym")}  # engine -> switches that suit it

KEPT = ("ends", "time")  # names in `qdiff.adapters.Adapter.sensitive`


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
        "--w_sym",
        action="store_true",
        needs=PTQ,
        excludes=("--resume", "--resume_w"),
        help="make weight ranges symmetric around zero: 8-bit weights then need no correction in int8, which makes "
        "--backend faster",
    )
    add(
        "--preset",
        needs=ACTIVATIONS,
        excludes=("--resume", "--resume_w"),
        help="ranges that suit an engine; tensorrt: --a_sym --w_sym",
        **choice(*PRESETS),
    )
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
    add(
        "--backend",
        default=SIMULATED,
        needs=PTQ,
        help="what computes the quantized network: simulated in floating point (default), or with integers, which is "
        "faster: torch, onnxruntime, openvino, or auto for the fastest of these that this machine has",
        **choice(SIMULATED, *BACKENDS),
    )
    parser.checks.append(_apply_preset)
    parser.checks.append(_check_fewer_bits)


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


def _words(text: str) -> tuple[str, ...]:
    return known_words(text, KEPT, " or ".join(KEPT) + ", or both with a comma")


def _fewer_bits(text: str) -> tuple[int, ...]:
    convert = number(int, 2, 7)["type"]
    return tuple(sorted({convert(word) for word in text.split(",")}))


def _apply_preset(args: argparse.Namespace, given: set[str]) -> None:
    for switch in PRESETS.get(args.preset, ()):
        setattr(args, switch, True)


def _check_fewer_bits(args: argparse.Namespace, given: set[str]) -> None:
    bits = max(args.mixed_precision, default=0)
    if bits >= args.act_bit:
        raise UserError(
            f"--mixed_precision {bits} is not less than --act_bit {args.act_bit}, the most bits of a step: lower the "
            "one or raise the other"
        )
