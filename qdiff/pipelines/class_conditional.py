"""`scripts/sample_diffusion_ldm.py`: latent models, unconditional and class-conditional."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from diffusion.steps import Sampler
from qdiff.adapters.ldm.samplers import DDIM, DDPM, DPMSolver
from qdiff.config.latent import find_checkpoint, find_config
from qdiff.files.arrays import write_array
from qdiff.pipelines.conditions import conditions_of
from qdiff.pipelines.latent import LatentPipeline
from qdiff.pipelines.pipeline import AskedSteps
from qdiff.pipelines.run import carry_out
from qdiff.sampling.run_folder import RunFolder


def sampler_of(args: Namespace) -> Sampler:
    """The sampler that the flags name."""
    if args.dpm:
        return DPMSolver(args.custom_steps)
    return DDPM() if args.vanilla_sample else DDIM(args.custom_steps, args.eta)


class ClassPipeline(LatentPipeline):
    """A latent model without conditions or with classes, as the flags describe it.

    Raises:
        UserError: what the flags or the configuration ask for cannot be.
    """

    free = ("n_samples", "batch_size", "n_samples_per_class", "resume_base", "config", "overrides")

    def __init__(self, args: Namespace):
        checkpoint = None if args.dry_run else find_checkpoint(args.resume_base, "-r")
        source, sampler = find_config(args.resume_base, args.config), sampler_of(args)
        asked = None if args.vanilla_sample else AskedSteps("-c", args.custom_steps)
        super().__init__(args, source, checkpoint, args.overrides, sampler, asked)
        self.images, self.batch_size = args.n_samples, args.batch_size
        self.conditions = conditions_of(self.latent, args.classes, args.scale, args.seed)
        self.columns = self.conditions.columns

    def finish(self, pictures: Sequence[Path], folder: RunFolder) -> str:
        """The array that the field's tools for FID read, too."""
        write_array(pictures, folder.path)
        return super().finish(pictures, folder)


def sample(args: Namespace) -> None:
    """Run the script with its flags. Raises UserError for whatever the user can mend."""
    carry_out(ClassPipeline(args))
