"""The flags of `scripts/txt2img.py`."""

import argparse
from pathlib import Path

from qdiff.cli.correction_flags import correction
from qdiff.cli.flags import running
from qdiff.cli.parser import Parser, choice, number
from qdiff.cli.quantization_flags import calibration, quantization
from qdiff.errors import UserError

EXAMPLES = """examples:
  with the bundled model, offline
    python scripts/%(prog)s --config models/ldm/emoji64-txt2img/config.yaml \\
      --ckpt models/ldm/emoji64-txt2img/model.safetensors --prompt "red apple" --plms --cond \\
      --outdir runs/text
  Stable Diffusion v1 with a calibrated checkpoint
    python scripts/%(prog)s --prompt "a red fox in the snow" --plms --cond --ptq --weight_bit 4 --quant_mode qdiff \\
      --no_grad_ckpt --split --n_samples 5 --resume --cali_ckpt FILE --outdir runs/sd
"""


def txt2img_parser() -> Parser:
    """Return the parser of `scripts/txt2img.py`, for `qdiff.cli.parser.parse`."""
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
    correction(parser)
    parser.checks += [_check_prompt, _check_sampler]
    return parser


def _model(parser: Parser) -> None:
    add = parser.group("model")
    config, ckpt = "configs/stable-diffusion/v1-inference.yaml", "models/ldm/stable-diffusion-v1/model.ckpt"
    add("--config", type=Path, default=Path(config), metavar="FILE", help="YAML of the model")
    add("--ckpt", type=Path, default=Path(ckpt), metavar="FILE", help="weights of the model, or their folder")
    add(
        "--clip_path",
        type=Path,
        metavar="DIR",
        help="folder of the tokenizer (default: that of --ckpt if it holds one, else CLIP's from the Hugging Face hub)",
    )
    add(
        "--precision",
        default="autocast",
        help="full: float32; autocast: bf16 or fp16 on CUDA, float32 elsewhere; bf16 and fp16: as named",
        **choice("full", "autocast", "bf16", "fp16"),
    )
    add(
        "--laion400m", action="store_true", help="not available: the text encoder of the LAION-400M model is not CLIP's"
    )
    add(
        "--no_grad_ckpt",
        action="store_true",
        help="accepted for the paper's commands; only large attention is checkpointed",
    )


def _prompts(parser: Parser) -> None:
    add = parser.group("images")
    add("--prompt", metavar="TEXT", excludes=("--from-file",), help="the prompt")
    add("--from-file", type=Path, metavar="FILE", help="prompts, one per line; empty lines are skipped")
    add("--n_samples", default=3, help="images per batch and per row of the grid", **number(int, 1))
    add("--n_iter", default=2, help="batches of --prompt, or images per line of --from-file", **number(int, 1))
    add("--H", help="height in pixels (default: as the model was trained)", **number(int, 1))
    add("--W", help="width in pixels (default: as the model was trained)", **number(int, 1))
    add("--C", help="channels of a latent; must be the model's", **number(int, 1))
    add("--f", help="image pixels per latent pixel along an edge; must be the model's", **number(int, 1))
    add("--n_rows", default=0, help="images per row of the grid; 0 takes --n_samples", **number(int, 0))
    add("--watermark", action="store_true", help="mark the images invisibly as generated; needs 'qdiff[watermark]'")
    add("--fixed_code", action="store_true", help="start every batch from the same noise")
    add("--skip_grid", action="store_true", help="write no grid")
    add(
        "--skip_save",
        action="store_true",
        help="write only the grid, which then shows all images; they must fit in memory",
    )


def _sampling(parser: Parser) -> None:
    add = parser.group("sampling")
    add("--ddim_steps", default=50, help="sampling steps", **number(int, 1))
    add("--ddim_eta", default=0.0, help="noise of DDIM: 0 is deterministic, 1 is DDPM", **number(float, 0, 1))
    add("--plms", action="store_true", help="PLMS instead of DDIM")
    add("--dpm", "--dpm_solver", action="store_true", excludes=("--plms",), help="DPM-Solver++ instead of DDIM")
    add(
        "--scale",
        default=7.5,
        help="classifier-free guidance scale, in calibration and sampling; 1 disables it",
        **number(float, 0, 100),
    )
    add(
        "--cali_prompts",
        type=Path,
        metavar="FILE",
        needs=("--ptq",),
        help="prompts for calibration data, one per line (default: a list that comes with the package)",
    )


def _check_prompt(args: argparse.Namespace, given: set[str]) -> None:
    if args.laion400m:
        raise UserError("--laion400m is not available, its text encoder is not CLIP's: leave it out")
    if args.prompt is None and args.from_file is None:
        raise UserError("no prompt: give --prompt TEXT or --from-file FILE")


def _check_sampler(args: argparse.Namespace, given: set[str]) -> None:
    """Refuse `--ddim_eta` with other samplers than DDIM, except 0."""
    if args.ddim_eta and (args.plms or args.dpm):
        raise UserError(f"--ddim_eta {args.ddim_eta} does not go with --plms or --dpm: leave one of them out")
