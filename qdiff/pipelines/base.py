"""What each kind of models implements for its pipelines."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from typing_extensions import Self

from diffusion.steps import Model
from qdiff.calls import Call
from qdiff.config.networks import plain
from qdiff.correction.table import CorrectionTable
from qdiff.files.images import Shape
from qdiff.pipelines.device import find_device
from qdiff.pipelines.execution import Execution
from qdiff.pipelines.settings import Sampling
from qdiff.quant_model import QuantModel

DEFAULT_BATCH = 10

SamplingT = TypeVar("SamplingT", bound=Sampling)


class BasePipeline(ABC, Generic[SamplingT]):
    """A diffusion model: what each kind of models implements for its pipelines.

    Attributes:
        source: file of the configuration.
        config: configuration of the model.
        device: device that the model computes on.
        sampling: settings of sampling.
        network: network that predicts the noise; a `QuantModel` if it is quantized.
        nfe: network calls per image.
        cfg_copies: rows in the network's batch per image, 2 with guidance.
        precision: of the network's arithmetic; "full" is float32.
        correction: of the quantized network's predictions; None leaves them as they are.
        execution: by the backend that computes the quantized network; None simulates it in floating point.

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
    correction: CorrectionTable | None = None
    execution: Execution | None = None

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
    def network(self) -> nn.Module:
        """The network that predicts the noise; without values where a backend executes it."""
        return self.execution.model if self.execution else self.called

    @property
    @abstractmethod
    def called(self) -> nn.Module:
        """What is called for a prediction: the network, or what a backend made of it."""

    @property
    @abstractmethod
    def module(self) -> nn.Module:
        """All that has weights: the network, and of a latent model its first stage and conditioner."""

    @abstractmethod
    def with_network(self, network: nn.Module) -> Self:
        """Return the pipeline that samples with another network, such as a quantized one, and no correction."""

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
    def timesteps(self) -> list[float]:
        """The timestep of each network call, in the order of sampling."""
        toy = torch.zeros(1, 1)
        return [step.t for step in self.sampling.sampler.steps(lambda x, t: x, toy, self.abar, torch.zeros_like)]

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

    def shapes(self) -> Call:
        """Return arguments of the network for one image, whose values mean nothing; needs no weights."""
        return self.example(1)

    def decode(self, x: Tensor) -> Tensor:
        """Turn the sampler's last x_prev into images (B, 1 or 3, H, W) of about -1..1."""
        return x

    def noise_streams(self, indices: Sequence[int]) -> Sequence[int]:
        """Return the index of each image's noise stream: its own."""
        return indices

    def image_text(self, indices: Sequence[int]) -> Mapping[str, str]:
        """Return what a PNG of these images says about their conditions."""
        return {}

    def warnings(self, calibrates: bool) -> list[str]:
        """Return warnings about requests that cannot be met in full, for the console and the log.

        Args:
            calibrates: whether calibration data come from the model's own sampling.
        """
        return []

    def digests(self) -> Mapping[str, str]:
        """Return digests, by name, of inputs that determine the images besides settings, configuration and weights."""
        return {}

    def _latest_timestep(self, batch_size: int) -> Tensor:
        """Return the timestep T-1, the noisiest one, int64 of shape (B,), for `example`."""
        return torch.full((batch_size,), len(self.abar) - 1, device=self.device)
