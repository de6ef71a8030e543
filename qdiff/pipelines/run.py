"""A run: plan, or load, quantize and sample into a folder; the same run again resumes."""

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from qdiff.backends import SIMULATED
from qdiff.calibration.measure import forward_seconds
from qdiff.calibration.plan import format_duration
from qdiff.files.digest import file_digest, tensors_digest
from qdiff.pipelines.backends import check_backend, executed
from qdiff.pipelines.correction import CorrectionSource
from qdiff.pipelines.output import Output
from qdiff.pipelines.pipeline import Pipeline
from qdiff.pipelines.quantization import Quantization
from qdiff.sampling.rank import ALONE, Rank
from qdiff.sampling.run_folder import RunFolder

MEASURED = 1  # images in the forward that a dry run measures; time is proportional to the batch size

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """The settings of a run under the names that its caller uses; the run's folder keeps them in `config.yaml`.

    Args:
        flags: settings that determine the images; a run with other ones is not resumed.
        free: settings that may change between runs.
        files: files whose contents determine the images, by the name of their setting; recorded by digest.
    """

    flags: Mapping[str, object] = field(default_factory=dict)
    free: Mapping[str, object] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One run, by one process or by the ranks of one job, of which rank 0 does what is done once.

    Args:
        pipeline: model and sampler, not loaded yet.
        quantization: how the network is quantized; None samples in full precision.
        output: the files to write.
        folder: folder of the run.
        record: the settings to record.
        folder_flag: the flag that named the folder, for error messages.
        rank: this process.
        correction: how the predictions of the quantized network are corrected; None leaves them as they are.
        backend: what computes the quantized network; see `qdiff.backends`.

    Raises:
        UserError: the settings do not fit the model.
    """

    pipeline: Pipeline
    quantization: Quantization | None
    output: Output
    folder: Path
    record: Record
    folder_flag: str = "-l"
    rank: Rank = ALONE
    correction: CorrectionSource | None = None
    backend: str = SIMULATED

    def __post_init__(self) -> None:
        if self.quantization:
            self.quantization.check(self.pipeline)
        self.output.decode_for(self.pipeline)
        if self.backend != SIMULATED:
            check_backend(self.pipeline)
        if not self.rank.alone:
            self.output.check_shared()

    def execute(self, *, verbose: bool = False) -> None:
        """Do what is not done yet. Raises UserError for every error that the user can fix."""
        with RunFolder.open(self.folder, flag=self.folder_flag, verbose=verbose, rank=self.rank) as folder:
            weights = self.pipeline.load(network=self.needs_weights)
            if self.correction:
                self.correction.check(self.pipeline)
            folder.record_config(self.settings(weights), [f"free.{name}" for name in self.record.free])
            if self.rank.first:
                self._announce()
            if self.quantization:  # before its work; sampling checks too, and reads every image for it
                self.output.check(self.pipeline, folder)
            run = self._quantized(folder)
            line = run.output.write(run.pipeline, folder)
            if self.rank.first:
                print(line)

    def _quantized(self, folder: RunFolder) -> "Run":
        """Return the run with the pipeline whose network is quantized; what rank 0 calibrates, the others load."""
        if self.quantization is None:
            return self
        original = self.pipeline
        if self.correction and self.correction.needs_weights:  # quantization changes the network
            original = original.with_network(copy.deepcopy(original.network))
        if self.quantization.writes:
            folder.lock.wait_for(folder.path / self.quantization.writes)
        quantized = self.pipeline.with_network(self.quantization.run(self.pipeline, folder.path))
        if self.correction:
            quantized = self._corrected(quantized, original, folder)
        if self.backend != SIMULATED:
            quantized = self._executed(quantized)
        return replace(self, pipeline=quantized, quantization=None)

    def _corrected(self, quantized: Pipeline, original: Pipeline, folder: RunFolder) -> Pipeline:
        """Return the pipeline with its correction; what rank 0 fits, the others load."""
        assert self.correction
        if self.correction.writes:
            folder.lock.wait_for(folder.path / self.correction.writes)
        corrected = self.correction.run(quantized, original, folder.path)
        if self.rank.first:
            print(*corrected.correction_report(), sep="\n", flush=True)
        return corrected

    def _executed(self, quantized: Pipeline) -> Pipeline:
        """Return the pipeline that the backend computes."""
        made = executed(quantized, self.backend)
        if self.rank.first and made.execution:
            print(f"backend {made.execution.backend}:", *made.execution.report, sep="\n  ", flush=True)
        return made

    def dry_run(self) -> None:
        """Print the plan of the run; needs no weights and writes nothing."""
        p, n = self.pipeline, self.output.num_images
        p.init_random()
        if self.correction:
            self.correction.check(p)
        print(f"network: {p.source}, {sum(x.numel() for x in p.network.parameters()):,} parameters on {p.device}")
        if self.quantization:
            plan = self.quantization.plan(p, MEASURED)
            print(*self.quantization.describe(p, plan), sep="\n")
        for line in (*p.remarks(), *p.warnings(self._collects)):
            print(line)
        each = forward_seconds(p.network, p.example(MEASURED)) / MEASURED * p.cfg_copies
        if self.correction:
            print(*self.correction.describe(p, each), sep="\n")
        print(f"sampling: {n} images, {p.nfe} steps, about {format_duration(each * p.nfe * n)}, to {self.folder}")

    def settings(self, weights: Mapping[str, Tensor]) -> dict:
        """Return everything that determines the images; `weights` are the loaded ones."""
        p, flags = self.pipeline, dict(self.record.flags)
        if "precision" in flags:  # resolved, for another device may compute otherwise
            flags["precision"] = p.precision
        digests = {name: file_digest(path) for name, path in self.record.files.items()} | dict(p.digests())
        return {
            "flags": flags,
            "free": dict(self.record.free),
            "config": p.config_dict,
            "sha256": ({"weights": tensors_digest(weights)} if weights else {}) | digests,
        }

    def _announce(self) -> None:
        """Print and log the pipeline's remarks and warnings."""
        for line in self.pipeline.remarks():
            print(line, flush=True)
            log.info(line)
        for line in self.pipeline.warnings(self._collects):
            log.warning(line)

    @property
    def needs_weights(self) -> bool:
        """Whether the network's full-precision weights must be loaded."""
        return self.quantization is None or any(x.needs_weights for x in (self.quantization, self.correction) if x)

    @property
    def _collects(self) -> bool:
        return self.quantization is not None and self.quantization.collects
