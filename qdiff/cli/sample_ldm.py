"""`scripts/sample_diffusion_ldm.py`: latent models, unconditional and class-conditional."""

from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qdiff.adapters.latent_diffusion import ClassEmbedder, decode
from qdiff.adapters.latent_sampling import LatentSampling
from qdiff.checkpoint import load_weights
from qdiff.cli.latent_config import build_latent, load_latent_config, locate
from qdiff.cli.pipeline import CALIBRATION_IMAGES, Pipeline
from qdiff.cli.run import carry_out
from qdiff.errors import UserError
from qdiff.sampling import batch_noise, write_array


class LatentPipeline(Pipeline):
    """A latent model as the flags describe it.

    Raises:
        UserError: what the flags or the configuration ask for cannot be.
    """

    free = ("n_samples", "n_samples_per_class")

    def __init__(self, args: Namespace):
        super().__init__(args)
        self.checkpoint, self.source = locate(args.resume_base, args.config)
        self.config = load_latent_config(self.source, args.overrides)
        self.images, self.batch_size = args.n_samples, args.batch_size
        # Weights come from the file, so none are drawn; a plan needs numbers to compute with.
        with torch.device("cpu" if args.dry_run else "meta"):
            self.latent = build_latent(self.config, self.source).eval().requires_grad_(False)
        if args.dry_run:
            self._settle()
        self.classes = self._classes()
        self.rows = 2 if args.scale != 1 else 1
        self.columns = len(args.classes) if args.classes and len(args.classes) > 1 else None
        self.sampling = LatentSampling(
            self.latent.num_timesteps,
            "dpm_solver" if args.dpm else "ddpm" if args.vanilla_sample else "ddim",
            args.custom_steps,
            args.eta,
            args.scale,
        )
        try:
            self.calls = len(self.sampling)
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
        self._settle()
        return self.latent.state_dict()

    def _settle(self) -> None:
        self.latent.adopt_ema()
        self.latent.to(self.device)

    def steps(self, images: Sequence[int]) -> Iterator:
        return self._steps(images, [self.classes[i % len(self.classes)] for i in images] if self.classes else None)

    def calibration_steps(self, images: Sequence[int]) -> Iterator:
        """Of classes drawn from all that the model has, whatever `--classes` says."""
        labels = None
        if self.classes:
            count = self._class_count
            labels = [int(np.random.default_rng((self.args.seed, i)).integers(count)) for i in images]
        return self._steps([CALIBRATION_IMAGES + i for i in images], labels)

    def _steps(self, images: Sequence[int], labels: Sequence[int] | None) -> Iterator:
        x_T, noise = batch_noise(self.args.seed, images, self.shape, self.device)
        c = uc = None
        if labels is not None:
            c = self._condition(labels)
            uc = self._condition([self._class_count] * len(labels)) if self.args.scale != 1 else None
        return self.sampling.run(self.latent, x_T, noise, c, uc)

    def example(self, batch_size: int) -> tuple[Tensor, ...]:
        x, _ = batch_noise(self.args.seed, range(batch_size), self.shape, self.device)
        inputs = x, self.latest_timestep(batch_size, self.latent.num_timesteps)
        return (*inputs, self._condition([0] * batch_size)) if self.classes else inputs

    def decode(self, x: Tensor) -> Tensor:
        return decode(self.latent, x)

    def finish(self, pictures: Sequence[Path], folder: Path) -> None:
        """The array that the field's tools for FID read."""
        write_array(pictures, folder)

    @property
    def _class_count(self) -> int:
        """Classes without the last one, which stands for none."""
        return self.latent.cond_stage_model.embedding.num_embeddings - 1

    def _classes(self) -> Sequence[int]:
        """The classes that pictures get in turn; none for an unconditional model."""
        a, conditioner = self.args, self.latent.cond_stage_model
        if conditioner is None:
            if a.classes or a.scale != 1:
                flag = "--classes" if a.classes else f"--scale {a.scale}"
                raise UserError(f"{flag} needs a class-conditional model, that of {self.source} is not: leave it out")
            return ()
        if not isinstance(conditioner, ClassEmbedder):
            raise UserError(f"'{self.source}' is not conditioned on classes: sample it with scripts/txt2img.py")
        wrong = [i for i in a.classes or () if i > self._class_count]
        if wrong:
            raise UserError(
                f"--classes {wrong[0]}: the model has the classes 0..{self._class_count}, the last for none"
            )
        return a.classes or range(self._class_count)

    def _condition(self, labels: Sequence[int]) -> Tensor:
        key = self.latent.cond_stage_model.key
        with torch.no_grad():
            return self.latent.get_learned_conditioning({key: torch.tensor(labels, device=self.device)})


def sample(args: Namespace) -> None:
    """Run the script with its flags. Raises UserError for whatever the user can mend."""
    carry_out(LatentPipeline(args))
