"""`scripts/sample_diffusion_ddim.py`: pixel-space models."""

from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from qdiff.adapters.ddim.samplers import PixelSampler, to_images
from qdiff.checkpoints.weights import load_weights
from qdiff.config.pixel import build_network, load_config
from qdiff.errors import UserError
from qdiff.files.download import fetch, name_for
from qdiff.files.pictures import Shape
from qdiff.pipelines.pipeline import AskedSteps, Pipeline
from qdiff.pipelines.run import carry_out
from qdiff.sampling.images import frame_writer
from qdiff.sampling.noise import batch_noise


class PixelPipeline(Pipeline):
    """A pixel-space model as the flags describe it.

    Raises:
        UserError: what the flags or the configuration ask for cannot be.
    """

    free = ("max_images", "batch_size", "config", "ckpt", "use_pretrained")

    def __init__(self, args: Namespace):
        super().__init__(args)
        self.source, self.config = args.config, load_config(args.config)
        self.images = args.max_images
        self.batch_size = args.batch_size or self.config.sampling.batch_size
        self.sampler = PixelSampler(
            self.config.diffusion,
            args.sample_type,
            args.timesteps,
            args.skip_type,
            args.eta,
            args.dpm_order,
            args.dpm_method,
        )
        self.asked = AskedSteps("--timesteps", args.timesteps)
        try:
            self.calls = len(self.sampler)
        except ValueError as error:
            raise UserError(f"{self.asked}: {error}") from None
        try:
            self.sampler.check()
        except ValueError as error:
            raise UserError(f"{args.config}, section 'diffusion': {error}") from None
        data = self.config.data
        if args.sample_type == "ddpm_noisy" and data.logit_transform:
            raise UserError(
                f"--sample_type ddpm_noisy clips x to -1..1, the training of {args.config} did not "
                "(data.logit_transform): take another sampler"
            )
        self.shape = (data.channels, data.image_size, data.image_size)
        self.network = build_network(self.config, args.config).eval()

    def load(self) -> Mapping[str, Tensor]:
        """Nothing with `--resume`: a calibrated file holds every number that is needed."""
        if self.args.resume:
            return {}
        load_weights(self.network, self._weights_file(), averages=self.config.model.get("ema"))
        return self.network.to(self.device).state_dict()

    def draw(self) -> None:
        """They were drawn as the network was built."""
        self.network.to(self.device)

    def steps(self, images: Sequence[int]) -> Iterator:
        x_T, noise = batch_noise(self.args.seed, images, self.shape, self.device)
        return self.sampler.steps(self.network, x_T, noise)

    @property
    def image_shape(self) -> Shape:
        return self.shape

    def example(self, batch_size: int) -> tuple[Tensor, Tensor]:
        x, _ = batch_noise(self.args.seed, range(batch_size), self.shape, self.device)
        return x, self.latest_timestep(batch_size, self.config.diffusion.num_diffusion_timesteps)

    def decode(self, x: Tensor) -> Tensor:
        return to_images(x, self.config.data)

    def watch(self, folder: Path) -> Mapping:
        return {"watch": frame_writer(folder / "sequence", self.decode)} if self.args.sequence else {}

    def _weights_file(self) -> Path:
        """The full-precision weights that the flags name; published ones are downloaded."""
        if self.args.ckpt:
            return self.args.ckpt
        if self.args.use_pretrained:
            return fetch(name_for(self.config))
        bundled = self.config.model.get("weights")
        if bundled is None:
            raise UserError(f"no weights: give --ckpt FILE or --use_pretrained ({self.args.config} names none)")
        return self.args.config.parent / bundled


def sample(args: Namespace) -> None:
    """Run the script with its flags. Raises UserError for whatever the user can mend."""
    carry_out(PixelPipeline(args))
