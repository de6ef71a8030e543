"""Which step gets which width: the criterion of PTQD, and one of our own for a budget of bit operations."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from qdiff.errors import UserError
from qdiff.mixed_precision.knapsack import best_options
from qdiff.mixed_precision.measurement import Measurement
from qdiff.spectrum import Spectrum

RATIOS = ("norm", "power")


@dataclass(frozen=True)
class SignalToNoise:
    """Each step takes the fewest bits whose SNR^Q exceeds SNR^F, and the most where none does (PTQD, section 3.4).

    The paper divides norms for SNR^Q, |eps| / |Delta|, and powers for SNR^F, alpha^2 / sigma^2.

    Args:
        ratio: "norm" compares these two as printed, "power" takes |eps|^2 / |Delta|^2 instead.

    Raises:
        ValueError: another ratio.
    """

    ratio: str = "norm"

    needs_spectrum: ClassVar[bool] = False

    def __post_init__(self):
        if self.ratio not in RATIOS:
            raise ValueError(f"snr_ratio must be one of {', '.join(RATIOS)}, not {self.ratio!r}")

    def __str__(self) -> str:
        return f"PTQD's criterion, SNR^Q a ratio of {self.ratio}s"

    def choose(self, measured: Measurement, spectrum: Spectrum | None = None) -> tuple[int, ...]:
        """Return the bits of each step; the spectrum is not used."""
        widths, snr = measured.widths, [measured.snr(bits, self.ratio) for bits in measured.widths]
        enough = (
            [bits for bits, of_width in zip(widths, snr) if of_width[i] > forward]
            for i, forward in enumerate(measured.forward)
        )
        return tuple(min(found, default=widths[-1]) for found in enough)


@dataclass(frozen=True)
class BopsBudget:
    """The widths that add the least predicted squared error to the image, within a budget of bit operations.

    Args:
        share: of the bit operations of an image that the most bits at all steps take, above 0 and at most 1.

    Raises:
        ValueError: another share.
    """

    share: float

    needs_spectrum: ClassVar[bool] = True

    def __post_init__(self):
        if not 0 < self.share <= 1:
            raise ValueError(f"bops_budget must be above 0 and at most 1, not {self.share!r}")

    def __str__(self) -> str:
        return f"least error of the image, budget {self.share:g}"

    def check(self, bops: Mapping[int, int]) -> None:
        """Raise UserError if the budget is less than the fewest bits at all steps take; `bops` of a call by bits."""
        fewest, most = min(bops), max(bops)
        least = bops[fewest] / bops[most]
        if self.share < least * (1 - 1e-9):
            raise UserError(
                f"--bops_budget {self.share:g} is less than {fewest} bits at all steps take, {least:.4f} of the bit "
                f"operations at {most} bits: raise it, or give fewer bits with --mixed_precision"
            )

    def choose(self, measured: Measurement, spectrum: Spectrum | None) -> tuple[int, ...]:
        """Return the bits of each step. Raises UserError as `check`, ValueError without a spectrum."""
        if spectrum is None:
            raise ValueError("a budget needs a spectrum, which tells what errors do to the image")
        self.check(measured.bops)
        widths = measured.widths
        errors = zip(*(measured.image_errors(bits, spectrum) for bits in widths))
        costs = [[calls * measured.bops[bits] for bits in widths] for calls in measured.calls]
        budget = self.share * measured.trajectory_bops([widths[-1]] * len(costs))
        options = best_options(list(errors), costs, budget)
        assert options is not None  # as `check` says
        return tuple(widths[k] for k in options)


Criterion = SignalToNoise | BopsBudget


@dataclass(frozen=True)
class MixedPrecision:
    """Bits of activations by sampling step, to be chosen.

    Args:
        fewer: bits that steps may have instead of those of the policy, ascending, each less than these.
        criterion: which step gets which.
    """

    fewer: tuple[int, ...]
    criterion: Criterion

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {"fewer": list(self.fewer), **asdict(self.criterion)}
