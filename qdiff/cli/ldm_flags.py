"""The flags of `scripts/sample_diffusion_ldm.py`."""

import argparse
from pathlib import Path

from qdiff.cli.correction_flags import correction
from qdiff.cli.flags import running
from qdiff.cli.parser import Parser, number
from qdiff.cli.quantization_flags import calibration, quantization
from qdiff.errors import UserError

EXAMPLES = """examples:
  in full precision, two classes side by side
    python scripts/%(prog)s -r models/ldm/emoji64 --classes 2,6 --n_samples_per_class 8 --scale 3 -c 50 \\
      --seed 41 -l runs/latent
  calibrate, save and sample with 4-bit weights and 8-bit activations
    python scripts/%(prog)s -r models/ldm/emoji64 -n 36 --scale 3 -c 50 --seed 41 \\
      --ptq --weight_bit 4 --quant_act --cali_st 10 --cali_n 32 -l runs/latent_w4a8
  sample with a calibrated checkpoint
    python scripts/%(prog)s -r models/ldm/lsun_beds256/model.ckpt -n 20 --batch_size 10 -c 200 -e 1.0 --seed 41 \\
      --ptq --weight_bit 4 --quant_act --a_sym --resume --cali_ckpt FILE -l runs/bedrooms
  change a parameter of the model: larger latents give images of 96 x 96
    python scripts/%(prog)s -r models/ldm/emoji64 -n 9 --seed 41 -l runs/large model.params.image_size=24
"""


def ldm_parser() -> Parser:
    """Return the parser of `scripts/sample_diffusion_ldm.py`, for `qdiff.cli.parser.parse`."""
    parser = Parser(
        overrides=True,
        prog="sample_diffusion_ldm.py",
        usage="python scripts/%(prog)s -r MODEL --seed N [-l DIR] [flags] [key=value ...]",
        description="Sample a latent diffusion model, in full precision or, with --ptq, quantized.",
        epilog=EXAMPLES,
    )
    add = parser.group("model")
    add(
        "-r",
        "--resume_base",
        required=True,
        type=Path,
        metavar="MODEL",
        help="checkpoint, or folder with model.ckpt (or model.safetensors) and config.yaml (required)",
    )
    add("--config", type=Path, metavar="FILE", help="YAML of the model (default: config.yaml beside the checkpoint)")
    running(parser, "-l", "--logdir", folder=Path("runs/ldm"), seed=None)
    _sampling(parser)
    _classes(parser)
    quantization(parser)
    calibration(parser)
    correction(parser)
    parser.checks += [_check_sampler, _check_count]
    return parser


def _sampling(parser: Parser) -> None:
    add = parser.group("sampling")
    add("-n", "--n_samples", default=50000, help="number of images to sample", **number(int, 1))
    add("--batch_size", default=10, help="images per batch", **number(int, 1))
    add("-c", "--custom_steps", default=50, help="sampling steps", **number(int, 1))
    add("-e", "--eta", default=1.0, help="noise of DDIM: 0 is deterministic, 1 is DDPM", **number(float, 0, 1))
    add("--dpm", action="store_true", help="DPM-Solver++ (multistep, order 2) instead of DDIM")
    add(
        "-v",
        "--vanilla_sample",
        action="store_true",
        excludes=("--dpm", "--custom_steps"),
        help="DDPM over every timestep of the model instead of DDIM",
    )


def _classes(parser: Parser) -> None:
    add = parser.group("classes (class-conditional models)")
    add(
        "--classes",
        type=_numbers,
        metavar="I,J,...",
        help="image i gets the i-th of these, starting over after the last (default: all but the null class)",
    )
    add(
        "--n_samples_per_class",
        needs=("--classes",),
        excludes=("--n_samples",),
        help="images per class, instead of --n_samples",
        **number(int, 1),
    )
    add(
        "--scale",
        default=1.0,
        help="classifier-free guidance scale, in calibration and sampling; 1 disables it; needs a null class: the last "
        "of 1001, or the configuration's null_class",
        **number(float, 0, 100),
    )


def _numbers(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of classes: give numbers with commas, as in 0,207")
    return [int(part) for part in parts]


def _check_sampler(args: argparse.Namespace, given: set[str]) -> None:
    """Refuse `--eta` with other samplers than DDIM, except their own values: 0 for DPM-Solver, 1 for DDPM."""
    fixed = {"--dpm": 0.0, "--vanilla_sample": 1.0}
    for flag, eta in fixed.items():
        if flag in given and "--eta" in given and args.eta != eta:
            raise UserError(f"--eta {args.eta} does not go with {flag}: leave --eta out")


def _check_count(args: argparse.Namespace, given: set[str]) -> None:
    """Set `--n_samples` to `--n_samples_per_class` times the number of classes."""
    if args.n_samples_per_class:
        args.n_samples = args.n_samples_per_class * len(args.classes)
