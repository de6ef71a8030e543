"""The flags of `scripts/txt2img.py`."""

import argparse
from pathlib import Path

from qdiff.cli.flags import calibration, quantization, running
from qdiff.cli.parser import Parser, choice, number
from qdiff.errors import UserError

EXAMPLES = """examples:
  with the small model that comes with the program, offline
    python scripts/%(prog)s --config models/ldm/emoji64-txt2img/config.yaml \\
      --ckpt models/ldm/emoji64-txt2img/model.safetensors --prompt "red apple" --plms --cond \\
      --outdir runs/text
  Stable Diffusion v1, sampled with a checkpoint that is calibrated already
    python scripts/%(prog)s --prompt "a red fox in the snow" --plms --cond --ptq --weight_bit 4 --quant_mode qdiff \\
      --no_grad_ckpt --split --n_samples 5 --resume --cali_ckpt FILE --outdir runs/sd
"""


def txt2img_parser() -> Parser:
    """Flags of `scripts/txt2img.py`, to be read with `qdiff.cli.parser.parse`."""
    parser = Parser(
        prog="txt2img.py",
        usage="python scripts/%(prog)s --prompt TEXT [--outdir DIR] [flags]",
        description="Sample a text-to-image latent model, in full precision or, with --ptq, quantized.",
        epilog=EXAMPLES,
    )
    _model(parser)
    running(parser, "--outdir", folder=Path("outputs/txt2img-samples"), seed=42)
    _prompts(parser)
    _sampling(parser)
    quantization(parser)
    calibration(parser)
    parser.checks += [_check_prompt, _check_sampler]
    return parser


def _model(parser: Parser) -> None:
    add = parser.group("model")
    config, ckpt = "configs/stable-diffusion/v1-inference.yaml", "models/ldm/stable-diffusion-v1/model.ckpt"
    add("--config", type=Path, default=Path(config), metavar="FILE", help="YAML of the model")
    add("--ckpt", type=Path, default=Path(ckpt), metavar="FILE", help="its weights, or their folder")
    add(
        "--clip_path",
        type=Path,
        metavar="DIR",
        help="folder with the tokenizer (default: that of --ckpt if it holds one, else CLIP's, from the Hugging Face "
        "hub)",
    )
    add(
        "--precision",
        default="autocast",
        help="autocast: bf16 or fp16 on CUDA, fp32 elsewhere; full: fp32; bf16 and fp16 by name",
        **choice("full", "autocast", "bf16", "fp16"),
    )
    add("--laion400m", action="store_true", help="the model of LAION-400M; not available, because of its text encoder")
    add(
        "--no_grad_ckpt",
        action="store_true",
        help="accepted as in the paper's commands; only large attention is checkpointed",
    )


def _prompts(parser: Parser) -> None:
    add = parser.group("pictures")
    add("--prompt", metavar="TEXT", excludes=("--from-file",), help="what to show")
    add("--from-file", type=Path, metavar="FILE", help="a prompt in each line, empty lines apart")
    add(
        "--n_samples",
        default=3,
        help="pictures at a time; of a --prompt, and as wide is the overview",
        **number(int, 1),
    )
    add("--n_iter", default=2, help="so many times --n_samples of --prompt, or of each line", **number(int, 1))
    add("--H", help="height in pixels (default: as the model was trained, as the next three)", **number(int, 1))
    add("--W", help="width in pixels", **number(int, 1))
    add("--C", help="channels of a latent", **number(int, 1))
    add("--f", help="pixels for each pixel of a latent, along an edge", **number(int, 1))
    add("--n_rows", default=0, help="pictures in a row of the overview; 0 takes --n_samples", **number(int, 0))
    add("--watermark", action="store_true", help="an invisible mark of generated pictures; needs 'qdiff[watermark]'")
    add("--fixed_code", action="store_true", help="every --n_samples pictures start from the same noise")
    add("--skip_grid", action="store_true", help="no overview")
    add(
        "--skip_save",
        action="store_true",
        help="no pictures beside the overview, which shows them all; they are all in memory for it",
    )


def _sampling(parser: Parser) -> None:
    add = parser.group("sampling")
    add("--ddim_steps", default=50, help="sampling steps", **number(int, 1))
    add("--ddim_eta", default=0.0, help="noise of DDIM: 0 none, 1 as DDPM", **number(float, 0, 1))
    add("--plms", action="store_true", help="PLMS instead of DDIM")
    add("--dpm", "--dpm_solver", action="store_true", excludes=("--plms",), help="DPM-Solver++ instead of DDIM")
    add("--scale", default=7.5, help="guidance, in calibration as in sampling; 1 is none", **number(float, 0, 100))
    add(
        "--cali_prompts",
        type=Path,
        metavar="FILE",
        needs=("--ptq",),
        help="a prompt in each line, for calibration data (default: a list that comes with the program)",
    )


def _check_prompt(args: argparse.Namespace, given: set[str]) -> None:
    if args.laion400m:
        raise UserError("--laion400m is not available, its text encoder is not CLIP's: leave it out")
    if args.prompt is None and args.from_file is None:
        raise UserError("nothing to show: give --prompt TEXT or --from-file FILE")


def _check_sampler(args: argparse.Namespace, given: set[str]) -> None:
    """`--ddim_eta` belongs to DDIM; 0 fits all samplers."""
    if args.ddim_eta and (args.plms or args.dpm):
        raise UserError(f"--ddim_eta {args.ddim_eta} does not go with --plms or --dpm: leave one of them out")
