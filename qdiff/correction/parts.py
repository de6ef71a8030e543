"""The parts of a correction, and what the samples that were not fitted say about each."""

from dataclasses import asdict, dataclass
from typing import Any

from qdiff.correction.moments import Mean

PARTS = ("slope", "bias", "variance")
CERTAIN = 2.0  # standard errors by which a gain must exceed 0


@dataclass(frozen=True)
class Part:
    """Whether a part is used, and why.

    Attributes:
        on: whether it is.
        gain: the share of the error on held-out samples that it removes; None where that was not measured.
        error: standard error of the gain, over the samples.
        note: what else there is to say.

    Raises:
        TypeError: an attribute has another type.
    """

    on: bool
    gain: float | None = None
    error: float | None = None
    note: str = ""

    def __post_init__(self) -> None:
        numbers = all(x is None or isinstance(x, int | float) for x in (self.gain, self.error))
        if not (isinstance(self.on, bool) and numbers and isinstance(self.note, str)):
            raise TypeError(f"a part is {self.on!r}, {self.gain!r}, {self.error!r}, {self.note!r}")

    def __str__(self) -> str:
        """Say it in one line."""
        words = ["on" if self.on else "off"]
        if self.gain is not None:
            words.append(f"removes {100 * self.gain:.3g} +- {100 * (self.error or 0):.2g} % of the held-out error")
        return ", ".join([*words, *[self.note] * bool(self.note)])

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as JSON values."""
        return asdict(self)


NOT_ASKED = Part(False, note="not asked for")


def judged(gains: Mean, whole: float) -> Part:
    """Return a part that is used if it helps: if it removes an error for certain.

    Args:
        gains: by how much the error of each held-out sample falls with the part.
        whole: the mean error without any correction.
    """
    if whole <= 0:
        return Part(False, note="there is no error")
    gain, error = (float(x) / whole for x in (gains.mean, gains.error))
    return Part(gain > CERTAIN * error, gain, error)
