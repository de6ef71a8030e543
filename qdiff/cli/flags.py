"""The flags of the scripts, each declared once: groups that the scripts share, and what a script adds of its own."""

import argparse
import re
from functools import partial
from pathlib import Path

from qdiff.cli.parser import Parser, choice, number
from qdiff.errors import UserError

PTQ = ("--ptq",)
ACTIVATIONS = ("--ptq", "--quant_act")

# Switches of the quantization group that only some scripts have.
OPTIONAL = {
    "--a_sym": {"needs": ACTIVATIONS, "help": "activation ranges symmetric around zero"},
    "--split": {
        "needs": PTQ,
        "help": "quantize shortcut layers in two slices, channels from below and from the skip connection",
    },
}

EXAMPLES = """examples:
  in full precision
    python scripts/%(prog)s --config configs/emoji32.yml --timesteps 50 --skip_type quad --max_images 64 -l runs/fp
  calibrate, save and sample with 4-bit weights and 8-bit activations
    python scripts/%(prog)s --config configs/emoji32.yml --timesteps 50 --skip_type quad --max_images 64 \\
      --ptq --weight_bit 4 --quant_act --split --cali_st 20 --cali_n 256 -l runs/w4a8
  sample with a checkpoint that is calibrated already
    python scripts/%(prog)s --config configs/cifar10.yml --use_pretrained --timesteps 100 --skip_type quad \\
      --ptq --weight_bit 4 --quant_act --a_sym --split --resume --cali_ckpt FILE -l runs/cifar10
"""


def ddim_parser() -> Parser:
    """Flags of `scripts/sample_diffusion_ddim.py`, to be read with `qdiff.cli.parser.parse`."""
    parser = Parser(
        prog="sample_diffusion_ddim.py",
        usage="python scripts/%(prog)s --config FILE [-l DIR] [flags]",
        description="Sample a pixel-space diffusion model, in full precision or, with --ptq, quantized.",
        epilog=EXAMPLES,
    )
    add = parser.group("model")
    add(
        "--config",
        required=True,
        type=Path,
        metavar="FILE",
        help="YAML of the model, required; without --ckpt and --use_pretrained the weights are the file that its key "
        "model.weights names, relative to the YAML",
    )
    add(
        "--ckpt",
        type=Path,
        metavar="FILE",
        excludes=("--use_pretrained",),
        help="full-precision weights, .safetensors, .pth or .ckpt (default: see --config)",
    )
    add("--use_pretrained", action="store_true", help="published weights, downloaded once and verified")
    running(parser, "-l", "--logdir", folder=Path("runs/ddim"), seed=1234)
    _ddim_sampling(parser)
    quantization(parser, "--a_sym", "--split")
    calibration(parser)
    parser.checks += [_check_sampler, _check_cali_st]
    return parser


def running(parser: Parser, *folder_names: str, folder: Path, seed: int | None) -> None:
    """Flags about the run itself.

    Args:
        folder_names: spellings of the flag that names the run's folder.
        folder: its default.
        seed: default of `--seed`; None makes the flag required.
    """
    add = parser.group("run")
    add(
        *folder_names, type=Path, default=folder, metavar="DIR", help="folder of the run; the same command continues it"
    )
    add(
        "--seed",
        default=seed,
        required=seed is None,
        help="image i depends on this and on i, not on the batch size",
        **number(int, 0, 2**32 - 1),  # what numpy's generators take
    )
    add(
        "--device",
        default="auto",
        type=_device,
        metavar="auto|cpu|cuda|cuda:N|mps",
        help="where to compute; auto: cuda, else mps, else cpu",
    )
    add("--dry_run", "--dry-run", action="store_true", help="print the plan (blocks, sizes, memory, time) and stop")
    add("--verbose", action="store_true", help="log more")


def quantization(parser: Parser, *optional: str) -> None:
    """Flags that say what is quantized and how; `optional` names those of `OPTIONAL` that the script has too."""
    add = parser.group("quantization")
    add("--ptq", action="store_true", help="quantize; without it everything is in full precision")
    add(
        "--quant_mode",
        default="qdiff",
        needs=PTQ,
        help="qdiff: learned rounding and step sizes; linear: nearest rounding, min-max ranges",
        **choice("qdiff", "linear"),
    )
    add("--weight_bit", default=8, needs=PTQ, help="bits of a weight", **number(int, 2, 8))
    add("--quant_act", action="store_true", needs=PTQ, help="quantize the activations too")
    add("--act_bit", default=8, needs=ACTIVATIONS, help="bits of an activation", **number(int, 2, 8))
    add("--sm_abit", default=8, needs=ACTIVATIONS, help="bits of attention after its softmax", **number(int, 2, 16))
    for name in optional:
        add(name, action="store_true", **OPTIONAL[name])
    add("--cond", action="store_true", help="calibrate with conditions; without effect on an unconditional model")
    add(
        "--resume",
        action="store_true",
        needs=(*PTQ, "--cali_ckpt"),
        help="calibrate nothing: take --cali_ckpt as it is",
    )
    add(
        "--resume_w",
        action="store_true",
        needs=(*ACTIVATIONS, "--cali_ckpt"),
        excludes=("--resume",),
        help="take the weights of --cali_ckpt, calibrate only the activations",
    )
    add(
        "--cali_ckpt",
        type=Path,
        metavar="FILE",
        needs=(*PTQ, "--resume or --resume_w"),
        help="calibrated checkpoint, ours or as the original saved it",
    )


def calibration(parser: Parser) -> None:
    """Flags of the calibration data and of the reconstruction."""
    add = parser.group("calibration", needs=PTQ)
    add(
        "--cali_data_path",
        type=Path,
        metavar="FILE",
        help="calibration data (default: collected from the model's own sampling, kept in the run's folder)",
    )
    add("--cali_st", default=1, help="how many of the sampling steps give data", **number(int, 1))
    add("--cali_n", default=1024, help="samples taken at each of these steps", **number(int, 1))
    add("--cali_batch_size", default=32, help="samples in an iteration", **number(int, 1))
    add("--cali_iters", default=20000, help="iterations a block, rounding of the weights", **number(int, 1))
    add("--cali_lr_w", default=1e-3, help="learning rate, rounding of the weights", **number(float, 1e-8, 1))
    add(
        "--cali_memory",
        help="GiB for the captured inputs and outputs of a block (default: half of the free memory)",
        **number(float, 0.01, 65536),
    )
    add_act = partial(add, needs=ACTIVATIONS)
    add_act("--cali_iters_a", default=5000, help="iterations a block, activation step sizes", **number(int, 1))
    add_act("--cali_lr", default=4e-4, help="learning rate, activation step sizes", **number(float, 1e-8, 1))
    add_act("--cali_p", default=2.4, help="p of the L_p loss, activation step sizes", **number(float, 1, 10))
    add_act("--cali_range_n", default=256, help="samples on which activation ranges are searched", **number(int, 1))
    add_act("--running_stat", action="store_true", help="activation ranges as running averages over the data")


def _ddim_sampling(parser: Parser) -> None:
    add = parser.group("sampling")
    add("--max_images", default=50000, help="images to make", **number(int, 1))
    add("--batch_size", help="images at a time (default: sampling.batch_size of --config)", **number(int, 1))
    add("--timesteps", default=1000, help="sampling steps", **number(int, 1))
    add("--skip_type", default="uniform", help="spacing of the steps", **choice("uniform", "quad"))
    add(
        "--sample_type",
        default="generalized",
        help="DDIM, DPM-Solver++ or DDPM",
        **choice("generalized", "dpm_solver", "ddpm_noisy"),
    )
    add("--eta", default=0.0, help="noise of generalized: 0 as DDIM, 1 as DDPM", **number(float, 0, 1))
    add("--dpm_order", default=3, help="order of dpm_solver", **number(int, 1, 3))
    add("--dpm_method", default="singlestep", help="kind of dpm_solver", **choice("singlestep", "multistep"))
    add("--sequence", action="store_true", help="keep the pictures of every step, not of the last alone")


def _check_sampler(args: argparse.Namespace, given: set[str]) -> None:
    """Flags of one sampler do not stand beside another; `--eta 0` fits all of them."""
    owner = {"--dpm_order": "dpm_solver", "--dpm_method": "dpm_solver"}
    if args.eta > 0:
        owner["--eta"] = "generalized"
    for flag, sampler in owner.items():
        if flag in given and args.sample_type != sampler:
            raise UserError(f"{flag} needs --sample_type {sampler}: add that, or leave {flag} out")


def _check_cali_st(args: argparse.Namespace, given: set[str]) -> None:
    """Data cannot come from more steps than are sampled."""
    if args.cali_data_path is None and args.cali_st > args.timesteps:
        raise UserError(f"--cali_st {args.cali_st} exceeds --timesteps {args.timesteps}: lower it")


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a device: use auto, cpu, mps, cuda or cuda:N")
    return text
