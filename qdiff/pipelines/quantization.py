"""How the network of a pipeline gets quantized: read from a file, or calibrated (see `calibrate`)."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

from torch import nn

from qdiff.calibration.plan import Plan
from qdiff.checkpoints.load import load_as_written, load_quantized
from qdiff.pipelines.pipeline import Pipeline
from qdiff.quant_model import QuantModel


class Quantization(Protocol):
    """A way to quantize the network of a pipeline.

    Attributes:
        needs_weights: the network's full-precision weights must be loaded first.
        collects: calibration data come from the model's own sampling.
    """

    @property
    def needs_weights(self) -> bool: ...
    @property
    def collects(self) -> bool: ...

    def check(self, pipeline: Pipeline) -> None:
        """Raise UserError for what is impossible with this pipeline, before anything is loaded."""

    def plan(self, pipeline: Pipeline, batch_size: int) -> Plan | None:
        """Measure, with batches of this size, what the calibration takes; None if there is none. Changes the network.

        Raises:
            UserError: a file that is needed does not fit.
        """

    def describe(self, pipeline: Pipeline, plan: Plan | None) -> Sequence[str]:
        """Return lines of a dry run."""

    def run(self, pipeline: Pipeline, folder: Path, *, progress: bool | None = None) -> QuantModel:
        """Return the quantized network, ready to sample; that of the pipeline is changed and not to be used any more.

        Args:
            pipeline: loaded.
            folder: where calibration keeps its data, journal and the quantized file; a killed calibration resumes.
            progress: show progress bars; None shows them on a terminal.

        Raises:
            UserError: a file does not fit, too little memory or disk, a loss that is not finite.
        """


@dataclass(frozen=True)
class LoadFile(ABC):
    """Take a quantized file as it is.

    Args:
        path: of the file.
    """

    path: Path

    needs_weights = False
    collects = False

    @abstractmethod
    def load(self, network: nn.Module) -> QuantModel:
        """Read the file into a network, which is changed. Raises UserError for a file that does not fit."""

    def check(self, pipeline: Pipeline) -> None:
        """Accept any: whether the file fits is seen when it is read."""
        return None

    def plan(self, pipeline: Pipeline, batch_size: int) -> None:
        """Read the file, so that errors are seen in a dry run."""
        self.load(pipeline.network)

    def describe(self, pipeline: Pipeline, plan: Plan | None) -> Sequence[str]:
        """Name the file."""
        return [f"calibrated weights: {self.path}"]

    def run(self, pipeline: Pipeline, folder: Path, *, progress: bool | None = None) -> QuantModel:
        """Read the file; see `Quantization`."""
        return self.load(pipeline.network).eval().to(pipeline.device)


@dataclass(frozen=True)
class LoadQuantized(LoadFile):
    """Take a file, ours or the original's, that must agree with these arguments of `load_quantized`."""

    weight_bit: int | None = None
    act_bit: int | None = None
    a_sym: bool = False
    split: bool = False
    sm_abit: int = 8
    low_memory: bool = False

    def load(self, network: nn.Module) -> QuantModel:
        options = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "path"}
        return load_quantized(network, self.path, **options)


class LoadAsWritten(LoadFile):
    """Take one of our files, whatever its bits."""

    def load(self, network: nn.Module) -> QuantModel:
        return load_as_written(network, self.path)
