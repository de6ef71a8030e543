"""The flags of `scripts/sample_diffusion_ddim.py`."""

import argparse
from pathlib import Path

from qdiff.cli.correction_flags import correction
from qdiff.cli.flags import running
from qdiff.cli.parser import Parser, choice, number
from qdiff.cli.quantization_flags import calibration, quantization
from qdiff.errors import UserError

EXAMPLES = """examples:
  in full precision
    python scripts/%(prog)s --config configs/emoji32.yml --timesteps 50 --skip_type quad --max_images 64 -l runs/fp
  calibrate, save and sample with 4-bit weights and 8-bit activations
    python scripts/%(prog)s --config configs/emoji32.yml --timesteps 50 --skip_type quad --max_images 64 \\
      --ptq --weight_bit 4 --quant_act --split --cali_st 20 --cali_n 256 -l runs/w4a8
  sample with a calibrated checkpoint
    python scripts/%(prog)s --config configs/cifar10.yml --use_pretrained --timesteps 100 --skip_type quad \\
      --ptq --weight_bit 4 --quant_act --a_sym --split --resume --cali_ckpt FILE -l runs/cifar10
"""


def ddim_parser() -> Parser:
    """Return the parser of `scripts/sample_diffusion_ddim.py`, for `qdiff.cli.parser.parse`."""
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
        help="YAML of the model (required); without --ckpt and --use_pretrained, its key model.weights names "
        "the weights, relative to the YAML",
    )
    add(
        "--ckpt",
        type=Path,
        metavar="FILE",
        excludes=("--use_pretrained",),
        help="full-precision weights: .safetensors, .pth or .ckpt (default: see --config)",
    )
    add("--use_pretrained", action="store_true", help="download the published weights once, and verify them")
    running(parser, "-l", "--logdir", folder=Path("runs/ddim"), seed=1234)
    _ddim_sampling(parser)
    quantization(parser)
    calibration(parser)
    correction(parser)
    parser.checks += [_check_sampler, _check_cali_st]
    return parser


def _ddim_sampling(parser: Parser) -> None:
    add = parser.group("sampling")
    add("--max_images", default=50000, help="number of images to sample", **number(int, 1))
    add("--batch_size", help="images per batch (default: sampling.batch_size of --config)", **number(int, 1))
    add("--timesteps", default=1000, help="sampling steps", **number(int, 1))
    add("--skip_type", default="uniform", help="spacing of the sampling steps", **choice("uniform", "quad"))
    add(
        "--sample_type",
        default="generalized",
        help="sampler: DDIM, DPM-Solver++ or DDPM",
        **choice("generalized", "dpm_solver", "ddpm_noisy"),
    )
    add("--eta", default=0.0, help="noise of generalized: 0 is deterministic DDIM, 1 is DDPM", **number(float, 0, 1))
    add("--dpm_order", default=3, help="order of dpm_solver", **number(int, 1, 3))
    add("--dpm_method", default="singlestep", help="variant of dpm_solver", **choice("singlestep", "multistep"))
    add("--sequence", action="store_true", help="keep the images of every sampling step, not only of the last")


def _check_sampler(args: argparse.Namespace, given: set[str]) -> None:
    """Refuse flags of one sampler with another one; `--eta 0` goes with all."""
    owner = {"--dpm_order": "dpm_solver", "--dpm_method": "dpm_solver"}
    if args.eta > 0:
        owner["--eta"] = "generalized"
    for flag, sampler in owner.items():
        if flag in given and args.sample_type != sampler:
            raise UserError(f"{flag} needs --sample_type {sampler}: add that, or leave {flag} out")


def _check_cali_st(args: argparse.Namespace, given: set[str]) -> None:
    """Refuse calibration data from more steps than are sampled."""
    if args.cali_data_path is None and args.cali_st > args.timesteps:
        raise UserError(f"--cali_st {args.cali_st} exceeds --timesteps {args.timesteps}: lower it")
