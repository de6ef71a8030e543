"""What the scripts of latent models share: one model, its weights, its sampler and its conditions."""

from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from qdiff.adapters.ldm.checkpoints import PublishedKeys
from qdiff.adapters.ldm.models import build, decode, guided, image_shape
from qdiff.adapters.ldm.samplers import Sampler
from qdiff.checkpoints.weights import load_weights
from qdiff.config.latent import build_latent, load_latent_config
from qdiff.errors import UserError
from qdiff.files.pictures import Shape
from qdiff.pipelines.conditions import Conditions
from qdiff.pipelines.pipeline import CALIBRATION_IMAGES, AskedSteps, Pipeline
from qdiff.sampling.noise import batch_noise

UNET = ("model.", "model_ema.")  # how its keys begin


class LatentPipeline(Pipeline):
    """A latent model; its scripts set what is not listed among the arguments.

    Attributes:
        latent: the model, on the meta device until `load` or `draw`.
        conditions: of its pictures.
        shape: (C, h, w) of a latent.

    Args:
        args: the flags.
        source: the configuration.
        checkpoint: the weights; None for a dry run.
        overrides: words that change the configuration.
        sampler: what samples it.
        asked: see `Pipeline`.

    Raises:
        UserError: what the flags or the configuration ask for cannot be.
    """

    conditions: Conditions
    shape: Shape

    def __init__(
        self,
        args: Namespace,
        source: Path,
        checkpoint: Path | None,
        overrides: Sequence[str],
        sampler: Sampler,
        asked: AskedSteps | None,
    ):
        super().__init__(args)
        self.source, self.checkpoint, self.sampler, self.asked = source, checkpoint, sampler, asked
        self.config = load_latent_config(source, overrides)
        self.latent = build_latent(self.config, source, empty=True).eval().requires_grad_(False)
        self.rows = 2 if args.scale != 1 else 1
        try:
            self.calls = sampler.calls(self.latent.num_timesteps)
        except ValueError as error:
            raise UserError(f"{asked}: {error}") from None
        self.shape = (self.latent.channels, self.latent.image_size, self.latent.image_size)

    @property
    def network(self) -> nn.Module:
        """The UNet."""
        return self.latent.model.diffusion_model

    def load(self) -> Mapping[str, Tensor]:
        """All weights, but not those of the UNet with `--resume`: a calibrated file has them."""
        loaded_without = UNET if self.args.resume else ()
        layout = PublishedKeys(self.latent, self.config, self.source)
        averages = self.latent.model_ema is not None
        load_weights(self.latent, self.checkpoint, layout=layout, averages=averages, skip=loaded_without)
        if self.args.resume:
            self.latent.model_ema = None
            self.network.to_empty(device="cpu")  # memory is taken when it is written to
        self._settle()
        return {key: x for key, x in self.latent.state_dict().items() if not key.startswith(loaded_without)}

    def draw(self) -> None:
        self.latent.load_state_dict(build(self.config).state_dict(), assign=True)
        self._settle()

    def _settle(self) -> None:
        self.latent.adopt_ema()
        network = self.network
        if self.args.resume:  # it holds no numbers yet, and is moved with those of the calibrated file
            self.latent.model.diffusion_model = None
        self.latent.to(self.device)
        self.latent.model.diffusion_model = network

    def steps(self, images: Sequence[int]) -> Iterator:
        return self._steps(self.noise_of(images), self.conditions.of(images))

    def calibration_steps(self, images: Sequence[int]) -> Iterator:
        return self._steps([CALIBRATION_IMAGES + i for i in images], self.conditions.for_calibration(images))

    def apply_model(self, x: Tensor, t: Tensor, c: Tensor | None) -> Tensor:
        """Predicted noise; see `LatentDiffusion.apply_model`."""
        return self.latent.apply_model(x, t, c)

    def _steps(self, streams: Sequence[int], c: Tensor | None) -> Iterator:
        x_T, noise = batch_noise(self.args.seed, streams, self.shape, self.device)
        uc = self.conditions.none(len(streams)) if self.rows > 1 else None
        model = guided(self.apply_model, c, uc, self.args.scale)
        return self.sampler.run(model, x_T, self.latent.alphas_cumprod, noise)

    @property
    def image_shape(self) -> Shape:
        return image_shape(self.latent, self.shape)

    def example(self, batch_size: int) -> tuple[Tensor, ...]:
        x, _ = batch_noise(self.args.seed, range(batch_size), self.shape, self.device)
        inputs = x, self.latest_timestep(batch_size, self.latent.num_timesteps)
        c = self.conditions.of([0])
        return inputs if c is None else (*inputs, c.expand(batch_size, -1, -1))

    @property
    def sampling(self) -> str:
        return f"{super().sampling}, scale {self.args.scale}"

    def metadata(self, *images: int) -> Mapping[str, str]:
        return {**self.conditions.text(images), **super().metadata(*images)}

    def decode(self, x: Tensor) -> Tensor:
        return decode(self.latent, x)
