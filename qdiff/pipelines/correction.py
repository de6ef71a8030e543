"""Correct a pipeline's quantized network: fit a correction, resumable, or read one from a file."""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from tqdm.auto import tqdm

from diffusion.checks import check_choice, whole
from qdiff.calibration.plan import format_duration
from qdiff.correction.file import read_correction, write_correction
from qdiff.correction.parts import PARTS
from qdiff.correction.results import JUDGED
from qdiff.correction.table import FITS, CorrectionTable
from qdiff.files.digest import tensors_digest
from qdiff.files.journal import Journal
from qdiff.pipelines.binding import checked, log_snr, made_for
from qdiff.pipelines.correction_fit import fit_correction, one_step
from qdiff.pipelines.pipeline import Pipeline
from qdiff.pipelines.provenance import check_provenance

FILE, JOURNAL = "correction.safetensors", "correcting"
IMAGES = 64

AnyPipeline = TypeVar("AnyPipeline", bound=Pipeline)

log = logging.getLogger(__name__)


class CorrectionSource(Protocol):
    """A way to get a correction.

    Attributes:
        needs_weights: whether the network in full precision takes part.
        writes: name of the file that `run` leaves in the folder; None if it leaves none.
    """

    @property
    def needs_weights(self) -> bool: ...
    @property
    def writes(self) -> str | None: ...

    def check(self, pipeline: Pipeline) -> None:
        """Raise UserError if the settings or the file do not fit this pipeline, whose schedule is loaded."""

    def describe(self, pipeline: Pipeline, seconds: float) -> Sequence[str]:
        """Return lines of a dry run; a network call of one image takes so many seconds."""

    def run(
        self, quantized: AnyPipeline, full_precision: Pipeline | None, folder: Path, *, progress: bool | None = None
    ) -> AnyPipeline:
        """Return the pipeline that corrects its predictions.

        Args:
            quantized: samples with the quantized network.
            full_precision: the same with the other one, if `needs_weights`.
            folder: keeps the work of a fit, and its file.
            progress: show a progress bar; None shows it on a terminal.

        Raises:
            UserError: a file does not fit, or the sampler does not.
        """

    def result(self, folder: Path) -> "LoadCorrection":
        """Return the way to load what `run` took or fitted, with this folder."""


@dataclass(frozen=True)
class LoadCorrection:
    """Read a correction from a file.

    Args:
        path: the file.
        interpolate: see `Pipeline.with_correction`.
    """

    path: Path
    interpolate: bool = False

    needs_weights = False
    writes = None

    def check(self, pipeline: Pipeline) -> None:
        """Read the file, and compare it with all but the network, which is not there yet."""
        table = read_correction(self.path)
        belongs = made_for(pipeline, known=table.made_for.get("network", ""))
        checked(table, belongs, pipeline, f"'{self.path}'", self.interpolate)

    def describe(self, pipeline: Pipeline, seconds: float) -> Sequence[str]:
        """Name the file and its parts."""
        return [f"correction: {self.path}, {', '.join(read_correction(self.path).used) or 'all parts off'}"]

    def run(
        self, quantized: AnyPipeline, full_precision: Pipeline | None, folder: Path, *, progress: bool | None = None
    ) -> AnyPipeline:
        """Read the file; see `CorrectionSource`."""
        return quantized.with_correction(self.path, interpolate=self.interpolate)

    def result(self, folder: Path) -> "LoadCorrection":
        """Return this; see `CorrectionSource`."""
        return self


@dataclass(frozen=True)
class FitCorrection:
    """Fit a correction.

    Args:
        fit: "ptqd" or "trajectory", see `qdiff.correction.table.CorrectionTable`.
        images: half of which the parts are judged on; at least 4.
        parts: of `PARTS`, those that may be used.
        file: to write; None writes it into the folder of the run.

    Raises:
        TypeError, ValueError: a setting of another type, or outside its range.
    """

    fit: str = "ptqd"
    images: int = IMAGES
    parts: tuple[str, ...] = PARTS
    file: Path | None = None

    needs_weights = True
    writes = FILE

    def __post_init__(self) -> None:
        check_choice("fit", self.fit, FITS)
        object.__setattr__(self, "images", whole("images", self.images, 4))
        for part in self.parts:
            check_choice("parts", part, PARTS)

    def check(self, pipeline: Pipeline) -> None:
        """Refuse a sampler that the fit cannot be used with."""
        if self.fit == "trajectory":
            one_step(pipeline)

    def calls(self, nfe: int) -> int:
        """Return the network calls of one image each that the fit takes, at the most."""
        walks = 1 + len(set(JUDGED) & set(self.parts))  # uncorrected, and with each part
        if self.fit == "trajectory":
            return (1 + walks) * self.images * nfe
        return (2 * self.images + walks * (self.images - self.images // 2)) * nfe

    def describe(self, pipeline: Pipeline, seconds: float) -> Sequence[str]:
        """Name the fit, and say how long it takes."""
        calls = self.calls(pipeline.nfe)
        return [
            f"correction: {self.fit} fit on {self.images} images, {calls:,} network calls, about "
            f"{format_duration(calls * seconds)}"
        ]

    def run(
        self, quantized: AnyPipeline, full_precision: Pipeline | None, folder: Path, *, progress: bool | None = None
    ) -> AnyPipeline:
        """Fit, or take the result of this fit if the folder has it; see `CorrectionSource`."""
        assert full_precision is not None
        file, journal = self.file or folder / FILE, folder / JOURNAL
        belongs, provenance = made_for(quantized), self._provenance(quantized, full_precision)
        if file.exists():
            log.info("correction fitted before: %s", file)
            table = read_correction(file)
            check_provenance(file, table.provenance, provenance, "fit", "fitted")
        else:
            records = Journal(journal, {"made_for": belongs, **provenance, "parts": None})
            hidden = None if progress is None else not progress
            calls = self.calls(quantized.nfe)
            with tqdm(total=calls, unit="call", desc="fitting the correction", disable=hidden) as bar:
                found = fit_correction(
                    self.fit, self.images, self.parts, quantized, full_precision, records, bar.update
                )
            table = CorrectionTable(
                **vars(found),
                fit=self.fit,
                timesteps=tuple(float(t) for t in quantized.timesteps),
                log_snr=tuple(log_snr(quantized)),
                made_for=belongs,
                provenance=provenance,
            )
            write_correction(file, table)
        shutil.rmtree(journal, ignore_errors=True)
        for name, part in table.parts.items():
            log.info("correction, %s: %s", name, part)
        return quantized.with_correction(table)

    def result(self, folder: Path) -> LoadCorrection:
        """Return the way to load the file of this fit; see `CorrectionSource`."""
        return LoadCorrection(self.file or folder / FILE)

    def _provenance(self, quantized: Pipeline, full_precision: Pipeline) -> dict[str, object]:
        return {
            "fit": self.fit,
            "images": self.images,
            "parts": list(self.parts),
            "seed": quantized.sampling.seed,
            "weights": tensors_digest(full_precision.network.state_dict()),
            **quantized.digests(),
        }
