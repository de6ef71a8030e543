"""A pipeline: a diffusion model with its sampler."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from tqdm.auto import tqdm
from typing_extensions import Self

from diffusion.checks import whole
from diffusion.steps import Correction, Model, Noise, Sampler, Step, uncorrected
from qdiff.calls import Call
from qdiff.checkpoints.load import save_quantized
from qdiff.config.networks import plain
from qdiff.errors import UserError
from qdiff.files.images import Shape, to_uint8
from qdiff.pipelines.bits import bits_of
from qdiff.pipelines.changes import changed, like
from qdiff.pipelines.device import find_device
from qdiff.pipelines.images import Images
from qdiff.pipelines.paths import as_path
from qdiff.pipelines.settings import Sampling
from qdiff.quant_model import QuantModel
from qdiff.sampling.images import check_finite
from qdiff.sampling.noise import batch_noise

DEFAULT_BATCH = 10
CALIBRATION_IMAGES = 10**9  # images for calibration are numbered from here, apart from all that are sampled


SamplingT = TypeVar("SamplingT", bound=Sampling)


class Pipeline(ABC, Generic[SamplingT]):
    """A diffusion model with its sampler.

    A loaded pipeline does not change: `with_sampling` and `with_network` return other pipelines, which share the
    weights.

    Attributes:
        source: file of the configuration.
        config: configuration of the model.
        device: device that the model computes on.
        sampling: settings of sampling.
        network: network that predicts the noise; a `QuantModel` if it is quantized.
        nfe: network calls per image.
        cfg_copies: rows in the network's batch per image, 2 with guidance.
        precision: of the network's arithmetic; "full" is float32.

    Class attributes:
        samplers: types of the samplers, by the names that `with_sampling` accepts.
        steps_flag: the scripts' flag for the number of steps, for error messages.
    """

    samplers: ClassVar[Mapping[str, type]]
    steps_flag: ClassVar[str]

    source: Path
    config: DictConfig
    sampling: SamplingT
    nfe: int
    cfg_copies: int = 1
    precision: str = "full"

    def __init__(self, device: str):
        self.device = find_device(device)

    @property
    def config_dict(self) -> dict[str, Any]:
        """The configuration as plain JSON values."""
        return plain(self.config)

    @property
    def is_quantized(self) -> bool:
        """Whether the network is quantized."""
        return isinstance(self.network, QuantModel)

    @property
    def columns(self) -> int | None:
        """Columns of a grid that shows each of a few kinds of images in its own; else None."""
        return None

    @property
    def batch_size(self) -> int:
        """Images per batch."""
        return self.sampling.batch_size or DEFAULT_BATCH

    @property
    @abstractmethod
    def network(self) -> nn.Module:
        """The network that predicts the noise."""

    @abstractmethod
    def with_network(self, network: nn.Module) -> Self:
        """Return the pipeline that samples with another network, such as a quantized one; this one does not change."""

    @abstractmethod
    def load(self, *, network: bool = True) -> Mapping[str, Tensor]:
        """Load the full-precision weights.

        Args:
            network: also load the network's; if False, a quantized file must supply them afterwards.

        Returns:
            the loaded tensors by name, shapes and dtypes as in the model's state dict.

        Raises:
            UserError: the weights are missing, damaged or do not fit.
        """

    @abstractmethod
    def init_random(self) -> None:
        """Initialise the weights randomly instead of loading them; enough for a plan."""

    @property
    @abstractmethod
    def abar(self) -> Tensor:
        """abar_t of the noise schedule, shape (T,)."""

    @property
    @abstractmethod
    def latent_shape(self) -> Shape:
        """(C, h, w) of one x_T."""

    @property
    @abstractmethod
    def image_shape(self) -> Shape:
        """(C, H, W) of a finished image."""

    @abstractmethod
    def model_for(self, indices: Sequence[int]) -> Model:
        """Return the model (x_t, t) -> eps for the images with these indices, their conditions and guidance included.

        See `diffusion.steps.Model` for the shapes.
        """

    def calibration_model_for(self, indices: Sequence[int]) -> Model:
        """Return the same for calibration images, which are numbered from 0 separately."""
        return self.model_for(indices)

    @abstractmethod
    def example(self, batch_size: int) -> Call:
        """Return arguments of the network: x_t (B, *latent_shape), t (B,) and the condition, if it takes one."""

    def decode(self, x: Tensor) -> Tensor:
        """Turn the sampler's last x_prev into images (B, 1 or 3, H, W) of about -1..1."""
        return x

    def steps(self, indices: Sequence[int], *, correct: Correction = uncorrected) -> Iterator[Step]:
        """Sample images one step at a time; image i does not depend on the rest of the batch.

        Args:
            indices: of the B images, each >= 0.
            correct: improves each prediction; see `diffusion.steps.Correction`.

        Yields:
            one `Step` per network call, whose tensors are (B, *latent_shape).
        """
        return self._steps(self.model_for(indices), self.noise_streams(indices), correct)

    def calibration_steps(self, indices: Sequence[int]) -> Iterator[Step]:
        """Sample calibration images one step at a time; their noise is never that of the images of `steps`."""
        streams = [CALIBRATION_IMAGES + i for i in indices]
        return self._steps(self.calibration_model_for(indices), streams, uncorrected)

    def _steps(self, model: Model, streams: Sequence[int], correct: Correction) -> Iterator[Step]:
        x_T, noise = self.noise(streams)
        return self.sampling.sampler.steps(model, x_T, self.abar, noise, correct=correct)

    def noise(self, streams: Sequence[int]) -> tuple[Tensor, Noise]:
        """Return x_T, float32 of shape (B, *latent_shape), and a source of further noise; see `batch_noise`."""
        return batch_noise(self.sampling.seed, streams, self.latent_shape, self.device)

    def noise_streams(self, indices: Sequence[int]) -> Sequence[int]:
        """Return the index of each image's noise stream: its own."""
        return indices

    def with_sampling(self, sampler: Sampler | str | None = None, **changes: Any) -> Self:
        """Return a pipeline with other settings of sampling; this one does not change.

        Args:
            sampler: a sampler, or its name; by name, it keeps the settings that it shares with the current one.
            changes: settings of the sampler, such as `steps` and `eta`, or of `sampling`, such as `seed`.

        Raises:
            TypeError: an unknown setting, or a value of another type.
            ValueError: a value outside its range.
            UserError: a value that this model cannot be sampled with.
        """
        other = copy.copy(self)
        other._configure(changed(self.sampling, self._sampler(sampler), changes))
        return other

    def _sampler(self, sampler: Sampler | str | None) -> Sampler:
        if not isinstance(sampler, str):
            return self.sampling.sampler if sampler is None else sampler
        if sampler not in self.samplers:
            raise ValueError(f"unknown sampler '{sampler}': use {', '.join(self.samplers)}")
        return like(self.sampling.sampler, self.samplers[sampler], self.nfe)

    def _configure(self, sampling: SamplingT) -> None:
        """Adopt settings of sampling. Raises UserError for those that do not fit the model."""
        self.sampling = sampling
        try:
            self.nfe = sampling.sampler.nfe(len(self.abar))
        except ValueError as error:
            steps = getattr(sampling.sampler, "num_steps", None)
            raise UserError(f"{self.steps_flag} {steps}: {error}") from None

    def __str__(self) -> str:
        """Name the sampler and its settings."""
        return f"{self.sampling.sampler}, {self.nfe} network calls"

    def __repr__(self) -> str:
        """Name the model, the sampler, the bits and the device."""
        return f"<{type(self).__name__} {self.source}: {self}, {bits_of(self.network)}, on {self.device}>"

    def image_text(self, indices: Sequence[int]) -> Mapping[str, str]:
        """Return what a PNG of these images says about their conditions."""
        return {}

    def remarks(self) -> list[str]:
        """Return notes about numbers that differ from the requested ones by design, for the console and the log."""
        asked = getattr(self.sampling.sampler, "num_steps", self.nfe)
        return [f"{self.steps_flag} {asked}: {self.nfe} network calls per image, not {asked}"] * (asked != self.nfe)

    def warnings(self, calibrates: bool) -> list[str]:
        """Return warnings about requests that cannot be met in full, for the console and the log.

        Args:
            calibrates: whether calibration data come from the model's own sampling.
        """
        return []

    def digests(self) -> Mapping[str, str]:
        """Return digests, by name, of inputs that determine the images besides settings, configuration and weights."""
        return {}

    def sample(self, count: int, *, progress: bool = False, **changes: Any) -> Images:
        """Sample images.

        Args:
            count: number of images, >= 1.
            progress: show a progress bar.
            changes: settings of sampling for this call, such as `seed=0` or `steps=20`; see `with_sampling`.

        Returns:
            the images 0..count - 1; image i depends only on the seed and on i, up to rounding of the network's
            arithmetic.

        Raises:
            TypeError: `count` is not a whole number, or as `with_sampling`.
            ValueError: `count` is less than 1, the network has no weights, or as `with_sampling`.
            UserError: an image is not finite, or as `with_sampling`.
        """
        if changes:
            return self.with_sampling(**changes).sample(count, progress=progress)
        count = whole("count", count, 1)
        self.check_loaded()
        batches = [batch.tolist() for batch in torch.arange(count).split(self.batch_size)]
        with tqdm(total=count * self.nfe, unit="call", desc="sampling", disable=not progress) as bar:
            return Images(torch.cat([to_uint8(self._sampled(batch, bar)) for batch in batches]))

    def _sampled(self, indices: Sequence[int], bar: tqdm) -> Tensor:
        """Return finished images (B, C, H, W), about -1..1."""
        for step in self.steps(indices):
            x = step.x_prev
            bar.update(len(indices))
        images = self.decode(x)
        check_finite(images, indices)
        return images

    def check_loaded(self) -> None:
        """Check that the network has weights. Raises ValueError if they are on the meta device."""
        if self.device.type != "meta" and any(x.is_meta for x in self.network.parameters()):
            raise ValueError("the network has no weights, they are on the meta device: call load() first")

    def save(self, path: str | Path) -> None:
        """Write the quantized network to one file, whole or not at all; `load_pipeline(..., quantized=path)` reads it.

        Args:
            path: its folder is created if missing; a file there is replaced.

        Raises:
            TypeError: `path` is not a path.
            ValueError: the network is in full precision.
            UserError: the file cannot be written.
        """
        file = as_path("path", path)
        if not isinstance(self.network, QuantModel):
            raise ValueError("the network is in full precision, nothing to save: call qdiff.quantize first")
        save_quantized(file, self.network, config=self.config_dict, provenance=self.network.provenance)

    def _latest_timestep(self, batch_size: int) -> Tensor:
        """Return the timestep T-1, the noisiest one, int64 of shape (B,), for `example`."""
        return torch.full((batch_size,), len(self.abar) - 1, device=self.device)
