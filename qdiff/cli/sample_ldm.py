"""`scripts/sample_diffusion_ldm.py`: latent models, unconditional and class-conditional."""

from argparse import Namespace
from typing import TYPE_CHECKING

from qdiff.cli.sample import assembled, perform, record_of
from qdiff.config.latent import find_checkpoint, find_config

if TYPE_CHECKING:
    from diffusion.steps import Sampler
    from qdiff.pipelines.class_conditional import ClassPipeline
    from qdiff.pipelines.run import Run

FREE = ("n_samples", "batch_size", "n_samples_per_class", "resume_base", "config", "overrides")


def sampler_of(args: Namespace) -> "Sampler":
    """Return the sampler that the flags name."""
    from qdiff.adapters.ldm.samplers import DDIM, DDPM, DPMSolver

    if args.dpm:
        return DPMSolver(args.custom_steps)
    return DDPM() if args.vanilla_sample else DDIM(args.custom_steps, args.eta)


def pipeline_of(args: Namespace) -> "ClassPipeline":
    """Return the pipeline that the flags describe. Raises UserError if it is impossible."""
    from qdiff.pipelines.class_conditional import ClassPipeline
    from qdiff.pipelines.settings import ClassSampling, LatentModel

    weights = args.resume_base if args.dry_run else find_checkpoint(args.resume_base, "-r")
    model = LatentModel(find_config(args.resume_base, args.config), weights, tuple(args.overrides), args.device)
    classes = tuple(args.classes) if args.classes else None
    return ClassPipeline(model, ClassSampling(sampler_of(args), args.batch_size, args.seed, args.scale, classes))


def run_of(args: Namespace) -> "Run":
    """Return the run that the flags describe; nothing is loaded yet. Raises UserError if it is impossible."""
    from qdiff.pipelines.output import Output

    return assembled(pipeline_of(args), args, Output(args.n_samples, array=True), record_of(args, FREE))


def sample(args: Namespace) -> None:
    """Run the script with its flags. Raises UserError for every error that the user can fix."""
    perform(run_of(args), args)
