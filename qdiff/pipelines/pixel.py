"""Pixel-space pipelines."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn
from typing_extensions import Self

from diffusion.steps import Model, check_schedule
from qdiff.adapters.ddim.samplers import DDIM, DDPM, DPMSolver, clips, schedule, to_images
from qdiff.calls import Call
from qdiff.checkpoints.weights import load_weights
from qdiff.config.pixel import build_network, load_config
from qdiff.errors import UserError
from qdiff.files.download import fetch, name_for
from qdiff.files.images import Shape
from qdiff.pipelines.pipeline import Pipeline
from qdiff.pipelines.settings import PixelModel, Sampling


class PixelPipeline(Pipeline[Sampling]):
    """A pixel-space model with its sampler.

    Args:
        model: files and device of the model.
        sampling: settings of sampling.

    Raises:
        UserError: the configuration is invalid, or the settings do not fit the model.
    """

    samplers: ClassVar[Mapping[str, type]] = {"ddim": DDIM, "ddpm": DDPM, "dpm": DPMSolver}
    steps_flag = "--timesteps"

    def __init__(self, model: PixelModel, sampling: Sampling):
        super().__init__(model.device)
        self.model, self.source, self.config = model, model.config, load_config(model.config)
        self._configure(sampling)
        self._network = build_network(self.config, self.source).eval()

    def _configure(self, sampling: Sampling) -> None:
        try:
            self._abar = schedule(self.config.diffusion)
        except ValueError as error:
            raise UserError(f"{self.source}, section 'diffusion': {error}") from None
        super()._configure(sampling)
        try:
            check_schedule(sampling.sampler, self.abar)
        except ValueError as error:
            raise UserError(f"{self.source}, section 'diffusion': {error}") from None
        if clips(sampling.sampler) and self.config.data.logit_transform:
            raise UserError(
                f"DDPM (--sample_type ddpm_noisy) clips x to -1..1, but '{self.source}' describes a model trained "
                "without clipping (data.logit_transform): use another sampler"
            )

    @property
    def called(self) -> nn.Module:
        return self._network

    @property
    def module(self) -> nn.Module:
        return self._network

    def with_network(self, network: nn.Module) -> Self:
        other = copy.copy(self)
        other._network = network
        other.correction = other.execution = None  # which belong to the network
        return other

    @property
    def batch_size(self) -> int:
        return self.sampling.batch_size or self.config.sampling.batch_size

    @property
    def abar(self) -> Tensor:
        return self._abar

    @property
    def latent_shape(self) -> Shape:
        data = self.config.data
        return data.channels, data.image_size, data.image_size

    @property
    def image_shape(self) -> Shape:
        return self.latent_shape

    def load(self, *, network: bool = True) -> Mapping[str, Tensor]:
        if not network:
            return {}
        load_weights(self.network, self._weights_file(), averages=self.config.model.get("ema"))
        return self.network.to(self.device).state_dict()

    def init_random(self) -> None:
        self.network.to(self.device)  # it was built with random weights

    def model_for(self, indices: Sequence[int]) -> Model:
        return self.called

    def example(self, batch_size: int) -> Call:
        x, _ = self.noise(range(batch_size))
        return Call((x, self._latest_timestep(batch_size)))

    def decode(self, x: Tensor) -> Tensor:
        return to_images(x, self.config.data)

    def _weights_file(self) -> Path:
        """Return the file of the full-precision weights; published ones are downloaded once."""
        if self.model.weights:
            return self.model.weights
        if self.model.published:
            return fetch(name_for(self.config))
        bundled = self.config.model.get("weights")
        if bundled is None:
            raise UserError(
                f"'{self.source}' names no weights: give weights=... (on the command line, --ckpt FILE or "
                "--use_pretrained)"
            )
        return self.source.parent / bundled
