"""The chosen bits of each step, with what they were chosen by: a record for the quantized file."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from qdiff.errors import UserError
from qdiff.mixed_precision.criteria import BopsBudget, Criterion, SignalToNoise
from qdiff.mixed_precision.measurement import Measurement
from qdiff.spectrum import Spectrum

KEY = "mixed_precision"  # in a file's provenance
CRITERIA: Mapping[str, type[SignalToNoise] | type[BopsBudget]] = {"snr": SignalToNoise, "bops": BopsBudget}


class Run(NamedTuple):
    """Consecutive steps with the same bits: bits, highest and lowest timestep, network calls, their bit operations."""

    bits: int
    first: int
    last: int
    calls: int
    bops: int


@dataclass(frozen=True)
class Choice:
    """The bits of each step.

    Args:
        criterion: by which they were chosen.
        measured: what it went by.
        bits: of each step of `measured`.
        spectrum: what errors do to the image, if the criterion needs it.

    Raises:
        ValueError: not as many bits as steps, or bits that were not measured.
    """

    criterion: Criterion
    measured: Measurement
    bits: tuple[int, ...]
    spectrum: Spectrum | None = None

    def __post_init__(self):
        if len(self.bits) != len(self.measured.timesteps) or not self.measured.errors.keys() >= {*self.bits}:
            raise ValueError("a choice has measured bits at every timestep")

    @classmethod
    def by(cls, criterion: Criterion, measured: Measurement, spectrum: Spectrum | None) -> "Choice":
        """Return what a criterion chooses. Raises UserError or ValueError as its `choose`."""
        used = spectrum if criterion.needs_spectrum else None
        return cls(criterion, measured, criterion.choose(measured, used), used)

    @property
    def by_timestep(self) -> dict[int, int]:
        """Bits by timestep."""
        return dict(zip(self.measured.timesteps, self.bits))

    @property
    def bops(self) -> int:
        """Bit operations of an image."""
        return self.measured.trajectory_bops(self.bits)

    @property
    def share(self) -> float:
        """These in relation to those of the most bits at all steps."""
        return self.bops / self.measured.trajectory_bops([self.measured.widths[-1]] * len(self.bits))

    @property
    def runs(self) -> list[Run]:
        """The runs of steps with equal bits, in the order of sampling."""
        m, found = self.measured, []
        for bits, steps in groupby(reversed(range(len(self.bits))), key=self.bits.__getitem__):
            run = list(steps)
            calls = sum(m.calls[i] for i in run)
            found.append(Run(bits, m.timesteps[run[0]], m.timesteps[run[-1]], calls, calls * m.bops[bits]))
        return found

    def __str__(self) -> str:
        runs = ", ".join(f"{run.bits} bits at {run.first}..{run.last}" for run in self.runs)
        return f"{runs} ({self.criterion}); {self.share:.3f} of the BOPs of {self.measured.widths[-1]} bits"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, for `from_dict`."""
        name = next(name for name, kind in CRITERIA.items() if isinstance(self.criterion, kind))
        return {
            "criterion": {"name": name, **asdict(self.criterion)},
            "bits": list(self.bits),
            "measured": self.measured.to_dict(),
            "spectrum": self.spectrum.to_dict() if self.spectrum else None,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Choice":
        """Return the choice that `to_dict` described. Raises KeyError, TypeError or ValueError for anything else."""
        about = dict(values["criterion"])
        criterion = CRITERIA[about.pop("name")](**about)
        spectrum = values["spectrum"]
        return cls(
            criterion,
            Measurement.from_dict(values["measured"]),
            tuple(map(int, values["bits"])),
            None if spectrum is None else Spectrum.from_dict(spectrum),
        )


def choice_of(provenance: Mapping[str, Any], path: Path) -> Choice | None:
    """Return the choice that a file's provenance records, None if it has none. Raises UserError if it is damaged."""
    if KEY not in provenance:
        return None
    try:
        return Choice.from_dict(provenance[KEY])
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        raise UserError(f"'{path}' has a damaged record of bits by step ({e}): copy or make it again") from e
