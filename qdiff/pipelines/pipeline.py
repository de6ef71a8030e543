"""A pipeline: a diffusion model and how it is sampled."""

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

from diffusion.steps import Correction, Model, Noise, Sampler, Step, uncorrected
from qdiff.calls import Call
from qdiff.checkpoints.load import save_quantized
from qdiff.config.networks import plain
from qdiff.errors import UserError
from qdiff.files.images import Shape, to_uint8
from qdiff.pipelines.changes import changed, like
from qdiff.pipelines.device import find_device
from qdiff.pipelines.images import Images
from qdiff.pipelines.settings import Sampling
from qdiff.quant_model import QuantModel
from qdiff.sampling.images import check_finite
from qdiff.sampling.noise import batch_noise

DEFAULT_BATCH = 10
CALIBRATION_IMAGES = 10**9  # images for calibration are numbered from here, apart from all that are sampled


SamplingT = TypeVar("SamplingT", bound=Sampling)


class Pipeline(ABC, Generic[SamplingT]):
    """A diffusion model and how it is sampled.

    A pipeline does not change once it is loaded: `with_sampling` and `with_network` return others, which share the
    weights.

    Attributes:
        source: the file of the configuration.
        config: of the model.
        device: where the model computes.
        sampling: how images are sampled.
        network: predicts the noise; a `QuantModel` once it is quantized.
        nfe: network calls per image.
        cfg_copies: rows of the network's batch per image, 2 with guidance.
        precision: of the network's arithmetic, "full" is float32.

    Class attributes:
        samplers: by the names that `with_sampling` takes.
        steps_flag: the flag of the scripts that sets the number of steps, for error messages.
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
        """Images at a time."""
        return self.sampling.batch_size or DEFAULT_BATCH

    @property
    @abstractmethod
    def network(self) -> nn.Module:
        """What predicts the noise."""

    @abstractmethod
    def with_network(self, network: nn.Module) -> Self:
        """Return the pipeline that samples with another network, such as a quantized one; this one does not change."""

    @abstractmethod
    def load(self, *, network: bool = True) -> Mapping[str, Tensor]:
        """Load the full-precision weights and return them by name.

        Args:
            network: load the network's too; without it, they are still to be filled in by a quantized file.

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
        """Return the model (x_t, t) -> eps of these images, with their conditions and guidance."""

    def calibration_model_for(self, indices: Sequence[int]) -> Model:
        """Return the model of calibration images, numbered from 0 too."""
        return self.model_for(indices)

    @abstractmethod
    def example(self, batch_size: int) -> Call:
        """Return a call of the network with a batch."""

    def decode(self, x: Tensor) -> Tensor:
        """Turn the sampler's last x_prev into images (B, 1 or 3, H, W) of about -1..1."""
        return x

    def steps(self, indices: Sequence[int], *, correct: Correction = uncorrected) -> Iterator[Step]:
        """Sample images by their numbers: yield one `Step` per network call.

        Image i does not depend on the rest of the batch, up to rounding of the network's arithmetic.
        """
        return self._steps(self.model_for(indices), self.noise_streams(indices), correct)

    def calibration_steps(self, indices: Sequence[int]) -> Iterator[Step]:
        """Sample images for calibration, none of which is among those of `steps`."""
        streams = [CALIBRATION_IMAGES + i for i in indices]
        return self._steps(self.calibration_model_for(indices), streams, uncorrected)

    def _steps(self, model: Model, streams: Sequence[int], correct: Correction) -> Iterator[Step]:
        x_T, noise = self.noise(streams)
        return self.sampling.sampler.steps(model, x_T, self.abar, noise, correct=correct)

    def noise(self, streams: Sequence[int]) -> tuple[Tensor, Noise]:
        """Return x_T of shape (B, *latent_shape) and a source of further noise; see `batch_noise`."""
        return batch_noise(self.sampling.seed, streams, self.latent_shape, self.device)

    def noise_streams(self, indices: Sequence[int]) -> Sequence[int]:
        """Return the numbers of the noise streams that images start from: their own."""
        return indices

    def with_sampling(self, sampler: Sampler | str | None = None, **changes: Any) -> Self:
        """Return the pipeline with other settings of sampling; this one does not change.

        Args:
            sampler: another one, or the name of one, which takes over the settings of the present one that it knows.
            changes: of the sampler's settings, such as `steps` and `eta`, and of those of `sampling`, such as `seed`.

        Raises:
            TypeError: a setting that this model's sampling does not have.
            ValueError, UserError: a value that it cannot have.
        """
        other = copy.copy(self)
        other._configure(changed(self.sampling, self._sampler(sampler), changes))
        return other

    def _sampler(self, sampler: Sampler | str | None) -> Sampler:
        if not isinstance(sampler, str):
            return sampler or self.sampling.sampler
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

    def image_text(self, indices: Sequence[int]) -> Mapping[str, str]:
        """Return what a PNG of these images says about their conditions."""
        return {}

    def remarks(self) -> list[str]:
        """Return lines about numbers that differ from those asked for, as they should; for the console and the log."""
        asked = getattr(self.sampling.sampler, "num_steps", self.nfe)
        return [f"{self.steps_flag} {asked}: {self.nfe} network calls an image, not {asked}"] * (asked != self.nfe)

    def warnings(self, calibrates: bool) -> list[str]:
        """Return lines about what is not done as asked, for the console and the log.

        Args:
            calibrates: calibration data come from the model's own sampling.
        """
        return []

    def digests(self) -> Mapping[str, str]:
        """Return digests of what else decides the images, by name."""
        return {}

    def sample(self, count: int, *, progress: bool = False, **changes: Any) -> Images:
        """Sample images.

        Args:
            count: of images, >= 1; they are numbered from 0.
            progress: show a progress bar.
            changes: settings of sampling for this call, such as `seed=0` or `steps=20`; see `with_sampling`.

        Returns:
            `count` images; image i depends on the seed and i alone, up to rounding of the network's arithmetic.

        Raises:
            TypeError, ValueError, UserError: see `with_sampling`; or an image is not finite.
        """
        if changes:
            return self.with_sampling(**changes).sample(count, progress=progress)
        if count < 1:
            raise ValueError(f"count must be at least 1, not {count}")
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

    def save(self, path: str | Path) -> None:
        """Write the quantized network to one file, whole or not at all; see `load_pipeline(..., quantized=path)`.

        Raises:
            ValueError: the network is in full precision.
            UserError: the disk refuses.
        """
        if not isinstance(self.network, QuantModel):
            raise ValueError("the network is in full precision, nothing to save: call qdiff.quantize first")
        save_quantized(path, self.network, config=self.config_dict, provenance=self.network.provenance)

    def _latest_timestep(self, batch_size: int) -> Tensor:
        """Return the timestep of pure noise, shape (B,), for `example`."""
        return torch.full((batch_size,), len(self.abar) - 1, device=self.device)
