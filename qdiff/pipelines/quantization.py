"""How the network of a pipeline gets quantized: read from a file, or calibrated (see `calibrate`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from qdiff.calibration.plan import Plan
from qdiff.checkpoints.load import load_quantized
from qdiff.checkpoints.quantized_file import read_policy
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
class LoadQuantized:
    """Take a quantized file, ours or the original's, as it is; arguments as in `load_quantized`."""

    path: Path
    weight_bit: int | None = None
    act_bit: int | None = None
    a_sym: bool = False
    split: bool = False
    sm_abit: int = 8
    low_memory: bool = False

    needs_weights = False
    collects = False

    @classmethod
    def as_written(cls, path: Path) -> "LoadQuantized":
        """Return how to load one of our files with everything that it holds. Raises UserError for another file."""
        p = read_policy(path)
        act_bit, a_sym = (p.act.bits, p.act.symmetric) if p.act else (None, False)
        return cls(path, p.weight.bits, act_bit, a_sym, p.split, p.softmax_bits)

    def check(self, pipeline: Pipeline) -> None:
        """Do nothing: whether the file fits is seen when it is read."""

    def plan(self, pipeline: Pipeline, batch_size: int) -> None:
        """Read the file, so that errors are seen in a dry run."""
        self._load(pipeline)

    def describe(self, pipeline: Pipeline, plan: Plan | None) -> Sequence[str]:
        """Name the file."""
        return [f"calibrated weights: {self.path}"]

    def run(self, pipeline: Pipeline, folder: Path, *, progress: bool | None = None) -> QuantModel:
        """Read the file; see `Quantization`."""
        return self._load(pipeline)

    def _load(self, pipeline: Pipeline) -> QuantModel:
        model = load_quantized(
            pipeline.network,
            self.path,
            weight_bit=self.weight_bit,
            act_bit=self.act_bit,
            a_sym=self.a_sym,
            split=self.split,
            sm_abit=self.sm_abit,
            low_memory=self.low_memory,
        )
        return model.eval().to(pipeline.device)
