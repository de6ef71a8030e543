"""`scripts/sample_diffusion_ddim.py`: pixel-space models."""

from argparse import Namespace
from typing import TYPE_CHECKING

from qdiff.cli.sample import assembled, perform, record_of

if TYPE_CHECKING:
    from diffusion.steps import Sampler
    from qdiff.pipelines.pixel import PixelPipeline
    from qdiff.pipelines.run import Run

FREE = ("max_images", "batch_size", "config", "ckpt", "use_pretrained")


def sampler_of(args: Namespace) -> "Sampler":
    """Return the sampler that the flags name."""
    from qdiff.adapters.ddim.samplers import DDIM, DDPM, DPMSolver

    if args.sample_type == "dpm_solver":
        return DPMSolver(args.timesteps, args.dpm_order, args.dpm_method, args.skip_type)
    if args.sample_type == "ddpm_noisy":
        return DDPM(args.timesteps, args.skip_type)
    return DDIM(args.timesteps, args.skip_type, args.eta)


def pipeline_of(args: Namespace) -> "PixelPipeline":
    """Return the pipeline that the flags describe. Raises UserError if it is impossible."""
    from qdiff.pipelines.pixel import PixelPipeline
    from qdiff.pipelines.settings import PixelModel, Sampling

    model = PixelModel(args.config, args.ckpt, args.use_pretrained, args.device)
    return PixelPipeline(model, Sampling(sampler_of(args), args.batch_size, args.seed))


def run_of(args: Namespace) -> "Run":
    """Return the run that the flags describe; nothing is loaded yet. Raises UserError if it is impossible."""
    from qdiff.pipelines.output import Output

    return assembled(pipeline_of(args), args, Output(args.max_images, sequence=args.sequence), record_of(args, FREE))


def sample(args: Namespace) -> None:
    """Run the script with its flags. Raises UserError for every error that the user can fix."""
    perform(run_of(args), args)
