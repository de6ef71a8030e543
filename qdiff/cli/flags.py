"""The flags of the scripts, each declared once: groups that the scripts share, and what a script adds of its own."""

import argparse
import re
from functools import partial
from pathlib import Path

from qdiff.cli.parser import Parser, choice, number
from qdiff.errors import UserError

PTQ = ("--ptq",)
ACTIVATIONS = ("--ptq", "--quant_act")

# Flags of the quantization group that only some scripts have.
OPTIONAL = {
    "--a_sym": {"needs": ACTIVATIONS, "help": "symmetric activation ranges around zero (default: asymmetric)"},
    "--split": {
        "needs": PTQ,
        "help": "quantize shortcut layers in two slices, from below and from the skip connection (default: in one)",
    },
}

EXAMPLES = """examples:
  full precision:      %(prog)s --config configs/emoji32.yml --timesteps 100 -l runs/fp
  calibrate, sample:   %(prog)s --config configs/emoji32.yml --timesteps 100 --ptq --weight_bit 4 --quant_act
                       --split --cali_st 20 --cali_n 256 -l runs/w4a8
  calibrated already:  %(prog)s --config configs/cifar10.yml --use_pretrained --timesteps 100 --skip_type quad
                       --ptq --weight_bit 4 --quant_act --a_sym --split --resume --cali_ckpt FILE -l runs/cifar10
"""


def ddim_parser() -> Parser:
    """Flags of `scripts/sample_diffusion_ddim.py`; read them with `qdiff.cli.parser.parse`."""
    parser = Parser(
        prog="sample_diffusion_ddim.py",
        usage="%(prog)s --config FILE [-l DIR] [flags]",
        description="Sample a pixel-space diffusion model: in full precision, or with --ptq quantized.",
        epilog=EXAMPLES,
    )
    add = partial(parser.flag, parser.add_argument_group("model"))
    add(
        "--config",
        required=True,
        type=Path,
        metavar="FILE",
        help="YAML of the model, required; its weights are --ckpt, else --use_pretrained, else the file "
        "that its key model.weights names, relative to the repository",
    )
    add(
        "--ckpt",
        type=Path,
        metavar="FILE",
        excludes=("--use_pretrained",),
        help="full-precision weights, .safetensors, .pth or .ckpt (default: as --config says)",
    )
    add("--use_pretrained", action="store_true", help="download the published weights once and verify them")
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
    add = partial(parser.flag, parser.add_argument_group("run"))
    add(
        *folder_names,
        type=Path,
        default=folder,
        metavar="DIR",
        help="folder of the run; the same command again goes on where it stopped (default %(default)s)",
    )
    seeds = number(int, 0, 2**32 - 1)  # what numpy's generators take too
    state = "required" if seed is None else "default %(default)s"
    add("--seed", required=seed is None, default=seed, help=f"image i depends on this and on i alone ({state})", **seeds)
    add(
        "--device",
        type=_device,
        default="auto",
        metavar="auto|cpu|cuda|cuda:N|mps",
        help="where to compute; auto takes cuda, else mps, else cpu (default %(default)s)",
    )
    add("--dry_run", "--dry-run", action="store_true", help="print blocks, sizes, memory and time, and stop")
    add("--verbose", action="store_true", help="log more")


def quantization(parser: Parser, *optional: str) -> None:
    """Flags that say what is quantized and how; `optional` picks from `OPTIONAL` what the script has too."""
    add = partial(parser.flag, parser.add_argument_group("quantization"))
    bits = "bits of {} (default %(default)s)"
    add("--ptq", action="store_true", help="quantize (default: sample in full precision)")
    add("--quant_act", action="store_true", needs=PTQ, help="quantize activations too (default: weights alone)")
    add("--weight_bit", default=8, needs=PTQ, help=bits.format("the weights"), **number(int, 2, 8))
    add("--act_bit", default=8, needs=ACTIVATIONS, help=bits.format("the activations"), **number(int, 2, 8))
    softmax = bits.format("the attention weights after the softmax")
    add("--sm_abit", default=8, needs=ACTIVATIONS, help=softmax, **number(int, 2, 16))
    add(
        "--quant_mode",
        default="qdiff",
        needs=PTQ,
        help="qdiff: learned rounding and step sizes; linear: nearest rounding, min-max ranges (default %(default)s)",
        **choice("qdiff", "linear"),
    )
    add(
        "--cond",
        action="store_true",
        help="calibrate on conditional and unconditional samples; a model without conditions has only the latter",
    )
    for name in optional:
        add(name, action="store_true", **OPTIONAL[name])
    add(
        "--resume",
        action="store_true",
        needs=(*PTQ, "--cali_ckpt"),
        help="sample with the calibrated checkpoint of --cali_ckpt",
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
        help="calibrated checkpoint: ours, or as the original saved it",
    )


def calibration(parser: Parser) -> None:
    """Flags of the calibration data and of the reconstruction."""
    group = parser.add_argument_group("calibration")
    add, add_act = partial(parser.flag, group, needs=PTQ), partial(parser.flag, group, needs=ACTIVATIONS)
    add(
        "--cali_data_path",
        type=Path,
        metavar="FILE",
        help="calibration data (default: collected from the model's own trajectory and kept in the run's folder)",
    )
    add("--cali_st", default=1, help="sampling steps the data are taken from (default %(default)s)", **number(int, 1))
    add("--cali_n", default=1024, help="samples of each of these steps (default %(default)s)", **number(int, 1))
    add("--cali_batch_size", default=32, help="samples an iteration (default %(default)s)", **number(int, 1))
    add(
        "--cali_iters",
        default=20000,
        help="iterations a block for the rounding of the weights (default %(default)s)",
        **number(int, 1),
    )
    add("--cali_lr_w", default=1e-3, help="Adam's rate for the rounding (default %(default)s)", **number(float, 1e-8, 1))
    add_act(
        "--cali_iters_a",
        default=5000,
        help="iterations a block for the step sizes of the activations (default %(default)s)",
        **number(int, 1),
    )
    add_act("--cali_lr", default=4e-4, help="Adam's rate for the step sizes (default %(default)s)", **number(float, 1e-8, 1))
    add_act("--cali_p", default=2.4, help="p of their L_p loss (default %(default)s)", **number(float, 1, 10))
    add_act("--running_stat", action="store_true", help="ranges as running averages over the data (default: first batch)")
    add(
        "--cali_memory",
        help="GiB for the captured inputs and outputs of a block (default: half of the free memory)",
        **number(float, 0.01, 65536),
    )


def _ddim_sampling(parser: Parser) -> None:
    add = partial(parser.flag, parser.add_argument_group("sampling"))
    add("--max_images", default=50000, help="images to make (default %(default)s)", **number(int, 1))
    add("--batch_size", help="images at a time (default: the config's sampling.batch_size)", **number(int, 1))
    add(
        "--sample_type",
        default="generalized",
        help="DDIM, DPM-Solver++ or DDPM (default %(default)s)",
        **choice("generalized", "dpm_solver", "ddpm_noisy"),
    )
    add("--timesteps", default=1000, help="sampling steps (default %(default)s)", **number(int, 1))
    add("--skip_type", default="uniform", help="spacing of the steps (default %(default)s)", **choice("uniform", "quad"))
    add("--eta", default=0.0, help="noise of DDIM: 0 none, 1 as DDPM (default %(default)s)", **number(float, 0, 1))
    add("--dpm_order", default=3, help="order of DPM-Solver++ (default %(default)s)", **number(int, 1, 3))
    add(
        "--dpm_method",
        default="singlestep",
        help="variant of DPM-Solver++ (default %(default)s)",
        **choice("singlestep", "multistep"),
    )
    add("--sequence", action="store_true", help="keep the intermediate pictures of every step too")
    parser.checks


def _check_sampler(args: argparse.Namespace) -> None:
    """DDIM's noise and DPM-Solver's variants belong to their sampler."""
    if args.eta and args.sample_type != "generalized":
        raise UserError(f"--eta {args.eta} is DDIM's: leave it out, or use --sample_type generalized")


def _check_cali_st(args: argparse.Namespace) -> None:
    """Data cannot be collected from more steps than are sampled."""
    if args.cali_data_path is None and args.cali_st > args.timesteps:
        raise UserError(f"--cali_st {args.cali_st} exceeds --timesteps {args.timesteps}: lower --cali_st")


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a device: use auto, cpu, mps, cuda or cuda:N")
    return text
