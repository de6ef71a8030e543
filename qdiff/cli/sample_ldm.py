"""`scripts/sample_diffusion_ldm.py`: latent models, unconditional and class-conditional."""

from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from qdiff.adapters.latent_diffusion import decode, guided, schedule
from qdiff.adapters.latent_sampling import DDIM, DDPM, DPMSolver, Sampler
from qdiff.checkpoint import load_weights
from qdiff.cli.conditions import conditions_of
from qdiff.cli.latent_config import build_latent, find_checkpoint, find_config, load_latent_config
from qdiff.cli.pipeline import CALIBRATION_IMAGES, Pipeline
from qdiff.cli.run import carry_out
from qdiff.errors import UserError
from qdiff.sampling import batch_noise, write_array


def sampler_of(args: Namespace) -> Sampler:
    """The sampler that the flags name."""
    if args.dpm:
        return DPMSolver(args.custom_steps)
    return DDPM() if args.vanilla_sample else DDIM(args.custom_steps, args.eta)


class LatentPipeline(Pipeline):
    """A latent model as the flags describe it.

    Raises:
        UserError: what the flags or the configuration ask for cannot be.
    """

    free = ("n_samples", "n_samples_per_class", "resume_base", "config", "overrides")

    def __init__(self, args: Namespace):
        super().__init__(args)
        self.checkpoint = None if args.dry_run else find_checkpoint(args.resume_base)
        self.source = find_config(args.resume_base, args.config)
        self.config = load_latent_config(self.source, args.overrides)
        self.images, self.batch_size = args.n_samples, args.batch_size
        # Weights come from the file, so none are drawn; a plan needs numbers to compute with, and no file.
        self.latent = build_latent(self.config, self.source, empty=not args.dry_run).eval().requires_grad_(False)
        if args.dry_run:
            self._settle()
        self.conditions = conditions_of(self.latent, args.classes, args.scale, args.seed)
        self.rows = 2 if args.scale != 1 else 1
        self.columns = self.conditions.columns
        self.sampler = sampler_of(args)
        try:
            self.calls = self.sampler.calls(self.latent.num_timesteps)
        except ValueError as error:
            raise UserError(f"-c {args.custom_steps}: {error}") from None
        self.shape = (self.latent.channels, self.latent.image_size, self.latent.image_size)

    @property
    def network(self) -> torch.nn.Module:
        """The UNet."""
        return self.latent.model.diffusion_model

    def load(self) -> Mapping[str, Tensor]:
        """All weights, also with `--resume`: the first stage and the vectors of the classes are not quantized."""
        load_weights(self.latent, self.checkpoint)
        if not torch.allclose(self.latent.alphas_cumprod, schedule(self.config), rtol=1e-4, atol=0):
            raise UserError(
                f"'{self.checkpoint}' has another noise schedule than '{self.source}', overrides included, says: the "
                "network was trained with its own, so leave its keys as they are"
            )
        self._settle()
        return self.latent.state_dict()

    def _settle(self) -> None:
        self.latent.adopt_ema()
        self.latent.to(self.device)

    def steps(self, images: Sequence[int]) -> Iterator:
        return self._steps(images, self.conditions.of(images))

    def calibration_steps(self, images: Sequence[int]) -> Iterator:
        return self._steps([CALIBRATION_IMAGES + i for i in images], self.conditions.for_calibration(images))

    def _steps(self, images: Sequence[int], c: Tensor | None) -> Iterator:
        x_T, noise = batch_noise(self.args.seed, images, self.shape, self.device)
        model = guided(self.latent.apply_model, c, self.conditions.none(len(images)), self.args.scale)
        return self.sampler.run(model, x_T, self.latent.alphas_cumprod, noise)

    def example(self, batch_size: int) -> tuple[Tensor, ...]:
        x, _ = batch_noise(self.args.seed, range(batch_size), self.shape, self.device)
        inputs = x, self.latest_timestep(batch_size, self.latent.num_timesteps)
        c = self.conditions.none(batch_size)
        return inputs if c is None else (*inputs, c)

    def decode(self, x: Tensor) -> Tensor:
        return decode(self.latent, x)

    def finish(self, pictures: Sequence[Path], folder: Path) -> None:
        """The array that the field's tools for FID read."""
        write_array(pictures, folder)


def sample(args: Namespace) -> None:
    """Run the script with its flags. Raises UserError for whatever the user can mend."""
    carry_out(LatentPipeline(args))
