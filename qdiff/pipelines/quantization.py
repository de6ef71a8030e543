"""Ways to quantize the network of a pipeline: read a file, or calibrate (see `calibrate`)."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from qdiff.calibration.plan import Plan
from qdiff.checkpoints.load import load_as_written, load_quantized, policy_of
from qdiff.checkpoints.quantized_file import read_quantized
from qdiff.pipelines.pipeline import Pipeline
from qdiff.policy import QuantPolicy
from qdiff.quant_model import QuantModel


class Quantization(Protocol):
    """A way to quantize the network of a pipeline.

    Attributes:
        needs_weights: whether the network's full-precision weights must be loaded first.
        collects: whether calibration data are needed, and come from the model's own sampling.
        writes: name of the file that `run` leaves in the folder; None if it leaves none.
    """

    @property
    def needs_weights(self) -> bool: ...
    @property
    def collects(self) -> bool: ...
    @property
    def writes(self) -> str | None: ...

    def check(self, pipeline: Pipeline) -> None:
        """Raise UserError if the settings do not fit this pipeline, before anything is loaded."""

    def plan(self, pipeline: Pipeline, batch_size: int) -> Plan | None:
        """Measure the time and memory of the calibration, with batches of this size; None if nothing is calibrated.

        Changes the network.

        Raises:
            UserError: a file does not fit the network.
        """

    def describe(self, pipeline: Pipeline, plan: Plan | None) -> Sequence[str]:
        """Return lines of a dry run."""

    def run(self, pipeline: Pipeline, folder: Path, *, progress: bool | None = None) -> QuantModel:
        """Quantize the pipeline's network, in place, and return the result, ready to sample.

        Args:
            pipeline: loaded; its own network must not be used afterwards.
            folder: keeps the calibration's data, journal and quantized file; a killed calibration resumes.
            progress: show progress bars; None shows them on a terminal.

        Raises:
            UserError: a file does not fit, too little memory or disk, or a loss is not finite.
        """

    def result(self, folder: Path) -> "LoadFile":
        """Return the way to load what `run` gave in this folder, without its full-precision weights."""


@dataclass(frozen=True)
class LoadFile(ABC):
    """Load a quantized file as it is.

    Args:
        path: the file.
    """

    path: Path

    needs_weights = False
    collects = False
    writes = None

    @abstractmethod
    def load(self, network: nn.Module) -> QuantModel:
        """Read the file into a network, in place. Raises UserError if the file does not fit."""

    def check(self, pipeline: Pipeline) -> None:
        """Accept every pipeline: whether the file fits is known once it is read."""
        return None

    def plan(self, pipeline: Pipeline, batch_size: int) -> None:
        """Read the file, so that a dry run shows its errors."""
        self.load(pipeline.network)

    def describe(self, pipeline: Pipeline, plan: Plan | None) -> Sequence[str]:
        """Name the file."""
        return [f"calibrated weights: {self.path}"]

    def run(self, pipeline: Pipeline, folder: Path, *, progress: bool | None = None) -> QuantModel:
        """Read the file; see `Quantization`."""
        return self.load(pipeline.network).eval().to(pipeline.device)

    def applied(self, pipeline: Pipeline) -> Pipeline:
        """Return the pipeline that samples with this file; `pipeline` keeps its network. Raises UserError as `load`."""
        own = pipeline.with_network(copy.deepcopy(pipeline.network))  # a file is loaded in place
        return pipeline.with_network(self.run(own, Path()))

    def result(self, folder: Path) -> "LoadFile":
        """Return this; see `Quantization`."""
        return self

    @abstractmethod
    def policy(self) -> QuantPolicy:
        """Read how the network is quantized. Raises UserError if the file is damaged or contradicts the settings."""


@dataclass(frozen=True)
class LoadQuantized(LoadFile):
    """Load a file, ours or the original's, that must agree with these arguments of `load_quantized`."""

    weight_bit: int | None = None
    act_bit: int | None = None
    a_sym: bool = False
    split: bool = False
    sm_abit: int = 8
    low_memory: bool = False

    def load(self, network: nn.Module) -> QuantModel:
        return load_quantized(network, self.path, **self._flags, low_memory=self.low_memory)

    def policy(self) -> QuantPolicy:
        return policy_of(self.path, **self._flags)

    @property
    def _flags(self) -> dict[str, Any]:
        """The arguments that must agree with the file."""
        others = ("path", "low_memory")
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in others}


@dataclass(frozen=True)
class LoadAsWritten(LoadFile):
    """Load one of our files, with the bits that it has."""

    low_memory: bool = False

    def load(self, network: nn.Module) -> QuantModel:
        return load_as_written(network, self.path, low_memory=self.low_memory)

    def policy(self) -> QuantPolicy:
        return read_quantized(self.path).policy
