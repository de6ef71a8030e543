"""What a script samples: a model on its device, and how the flags say to sample it."""

from abc import ABC, abstractmethod
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from qdiff.calibration.collect import SamplerStep
from qdiff.files.grid import write_grid
from qdiff.files.images import Shape
from qdiff.pipelines.device import find_device
from qdiff.pipelines.png_text import png_text
from qdiff.sampling.run_folder import RunFolder

GRID_IMAGES = 64
CALIBRATION_IMAGES = 10**9  # numbers of the images that calibration data come from: none that is ever sampled


class AskedSteps(NamedTuple):
    """The flag that asks for a number of sampling steps, and the number."""

    flag: str
    number: int

    def __str__(self) -> str:
        return f"{self.flag} {self.number}"


class Pipeline(ABC):
    """A diffusion model and its sampling.

    Attributes:
        args: the flags.
        device: where the model is.
        config: of the model.
        source: the file of the configuration.
        network: what predicts the noise; quantization changes it in place.
        images: how many pictures to make.
        batch_size: pictures at a time.
        sampler: what samples; as text, with its settings.
        asked: the steps that a flag asks for; None where all timesteps are visited.
        calls: how often the network is called for a picture.
        rows: how many rows of the network's batch belong to a picture, 2 with guidance.
        columns: of the overview; None makes it square.
        files: flags that name files whose contents decide what the pictures are, beside those of `Run`.
        folder_flag: the flag that names the run's folder.
        free: flags beside those of `Run` with which a run may be continued.
    """

    args: Namespace
    config: DictConfig
    source: Path
    network: nn.Module
    images: int
    batch_size: int
    sampler: object
    asked: AskedSteps | None
    calls: int
    rows: int = 1
    columns: int | None = None
    free: tuple[str, ...] = ()
    files: ClassVar[tuple[str, ...]] = ()
    folder_flag: ClassVar[str] = "-l"

    def __init__(self, args: Namespace):
        self.args = args
        self.device = find_device(args.device)

    @abstractmethod
    def load(self) -> Mapping[str, Tensor]:
        """Load the weights that sampling needs, and return them by name. Raises UserError."""

    @abstractmethod
    def draw(self) -> None:
        """Take numbers at random in place of those that `load` reads: enough for a plan, which needs no file."""

    @abstractmethod
    def steps(self, images: Sequence[int]) -> Iterator[SamplerStep]:
        """The sampling steps of pictures by their numbers; picture i is the same in whatever company."""

    def calibration_steps(self, images: Sequence[int]) -> Iterator[SamplerStep]:
        """The sampling steps of pictures for calibration, none of which is among those of `steps`."""
        return self.steps([CALIBRATION_IMAGES + i for i in images])

    @property
    @abstractmethod
    def image_shape(self) -> Shape:
        """(C, H, W) of a finished picture."""

    @abstractmethod
    def example(self, batch_size: int) -> tuple[Tensor, ...]:
        """Inputs of the network, as it takes them by position."""

    def decode(self, x: Tensor) -> Tensor:
        """The sampler's last `x_prev` -> pictures (B, 1 or 3, H, W), about -1..1."""
        return x

    def watch(self, folder: Path) -> Mapping:
        """The keyword `on_step` of `sample_images`, if the steps are to be watched; `folder` is the run's."""
        return {}

    def digests(self) -> Mapping[str, str]:
        """Digests of what else decides the pictures, by name."""
        return {}

    def finished(self, folder: RunFolder) -> bool:
        """Whether nothing is left to do although the folder may hold no pictures."""
        return False

    def noise_of(self, images: Sequence[int]) -> Sequence[int]:
        """Numbers of the streams of noise that pictures are made from: their own."""
        return images

    @property
    def sampling(self) -> str:
        """How pictures are sampled, for people."""
        return f"{self.sampler}, {self.calls} network calls"

    def metadata(self, *images: int) -> Mapping[str, str]:
        """The text chunks of a PNG that shows these pictures."""
        return png_text(self.args, self.noise_of(images), self.sampling)

    def remarks(self) -> list[str]:
        """Lines about numbers that differ from those of the flags, as they should; for the console and the log."""
        if self.asked is None or self.asked.number == self.calls:
            return []
        return [f"{self.asked}: {self.calls} network calls an image, not {self.asked.number}"]

    def warnings(self, calibrates: bool) -> list[str]:
        """Lines about what is not done as asked, for the console and the log.

        Args:
            calibrates: calibration data come from the model's own sampling.
        """
        return []

    def finish(self, pictures: Sequence[Path], folder: RunFolder) -> str:
        """What is to be done when all pictures are there: an overview of the first ones. Returns where they are."""
        self.overview(pictures[:GRID_IMAGES], folder)
        return f"in {folder.image_dir}, the first ones in {folder.grid}"

    def overview(self, pictures: Sequence[Path], folder: RunFolder) -> None:
        """One PNG of these pictures: the run's first ones, or all."""
        write_grid(pictures, folder.grid, self.columns, self.metadata(*range(len(pictures))))

    def latest_timestep(self, batch_size: int, num_timesteps: int) -> Tensor:
        """(B,): the timestep at which noise is pure, for `example`."""
        return torch.full((batch_size,), num_timesteps - 1, device=self.device)
