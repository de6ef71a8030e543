"""`scripts/txt2img.py`: text-to-image latent models."""

from argparse import Namespace
from typing import TYPE_CHECKING

from qdiff.cli.sample import assembled, perform, record_of
from qdiff.config.latent import find_checkpoint
from qdiff.files.prompts import as_text, read_prompts

if TYPE_CHECKING:
    from diffusion.steps import Sampler
    from qdiff.pipelines.run import Run
    from qdiff.pipelines.text import TextPipeline

FREE = ("config", "ckpt", "clip_path", "skip_grid", "no_grad_ckpt")


def sampler_of(args: Namespace) -> "Sampler":
    """Return the sampler that the flags name."""
    from qdiff.adapters.ldm.samplers import DDIM, PLMS, DPMSolver

    if args.plms:
        return PLMS(args.ddim_steps)
    return DPMSolver(args.ddim_steps) if args.dpm else DDIM(args.ddim_steps, args.ddim_eta)


def pipeline_of(args: Namespace) -> "TextPipeline":
    """Return the pipeline that the flags describe. Raises UserError if it is impossible."""
    from qdiff.pipelines.settings import LatentModel, TextSampling
    from qdiff.pipelines.text import TextPipeline

    a = args
    prompts = read_prompts(a.from_file, "--from-file") if a.from_file else [as_text(a.prompt)]
    cali_prompts = read_prompts(a.cali_prompts, "--cali_prompts") if a.cali_prompts else ()
    sampling = TextSampling(
        sampler_of(a),
        a.n_samples,
        a.seed,
        a.scale,
        tuple(prompts),
        tuple(cali_prompts),
        height=a.H,
        width=a.W,
        noise_period=a.n_samples if a.fixed_code else None,
    )
    weights = a.ckpt if a.dry_run else find_checkpoint(a.ckpt, "--ckpt")
    model = LatentModel(
        a.config, weights, (), a.device, precision=a.precision, tokenizer=a.clip_path, channels=a.C, factor=a.f
    )
    return TextPipeline(model, sampling)


def free_flags(args: Namespace) -> tuple[str, ...]:
    """Return the flags that may change when a run is resumed."""
    if args.skip_save:  # no images are kept that others could be added to
        return FREE
    return (*FREE, "n_iter", "n_rows") if args.fixed_code else (*FREE, "n_iter", "n_rows", "n_samples")


def run_of(args: Namespace) -> "Run":
    """Return the run that the flags describe; nothing is loaded yet. Raises UserError if it is impossible."""
    from qdiff.pipelines.output import Output

    pipeline = pipeline_of(args)
    prompts = len(pipeline.sampling.prompts) if args.from_file else args.n_samples
    output = Output(
        args.n_iter * prompts,
        columns=args.n_rows or args.n_samples,
        grid=not args.skip_grid,
        images=not args.skip_save,
        watermark=args.watermark,
    )
    record = record_of(args, free_flags(args), ("from_file", "cali_prompts"))
    return assembled(pipeline, args, output, record, "--outdir")


def sample(args: Namespace) -> None:
    """Run the script with its flags. Raises UserError for every error that the user can fix."""
    perform(run_of(args), args)
