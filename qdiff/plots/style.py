"""The look of all plots: fonts, colours, markers. Nothing here or elsewhere uses the state of pyplot."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from qdiff.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 7.2  # inches; of a page, and at 130 dots per inch of a README
FONT = 9.5  # points
SMALL = 8  # points; of labels that are many
TICKS = 9  # timesteps that an axis names, at most

# Okabe and Ito's colours, which colour-blind readers tell apart; dashes and markers tell lines apart without colour
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", (0, (5, 2)), (0, (1.2, 1.5)), (0, (6, 2, 1.2, 2)))
SHADES = "cividis"  # rises in lightness from end to end, so it reads the same in black and white

SETTINGS: dict[Any, Any] = {
    "font.size": FONT,
    "font.family": "DejaVu Sans",  # comes with matplotlib, so plots look the same everywhere
    "axes.titlesize": FONT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.fontsize": FONT,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "savefig.dpi": 130,
    "svg.hashsalt": "qdiff",  # instead of a random one: the same plot is the same bytes
}


def check_installed() -> None:
    """Check that matplotlib is installed. Raises UserError otherwise."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as e:
        raise UserError(f"plots need a package ({e}): pip install 'qdiff[plot]'") from e


@contextmanager
def styled() -> Iterator[None]:
    """Apply the look inside. Raises UserError if matplotlib is not installed."""
    check_installed()
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the user's own settings are
        matplotlib.rcParams.update(SETTINGS)
        yield


@contextmanager
def drawing(height: float, width: float = WIDTH) -> Iterator["Figure"]:
    """Yield an empty figure to draw on, in the common look.

    Args:
        height, width: inches.

    Raises:
        UserError: matplotlib is not installed.
    """
    with styled():
        from matplotlib.figure import Figure

        yield Figure(figsize=(width, height), layout="constrained")


def line_style(i: int) -> dict[str, Any]:
    """Return colour, dashes and marker of line `i`; they repeat together after 28 lines."""
    return {
        "color": COLOURS[i % len(COLOURS)],
        "marker": MARKERS[i % len(MARKERS)],
        "linestyle": DASHES[i % len(DASHES)],
    }


def timestep_axis(axes: "Axes", timesteps: Sequence[float]) -> None:
    """Label an axis of network calls, 0, 1, ..., by their timesteps: from noise, at the left, to the image."""
    calls = spaced(len(timesteps), TICKS)
    axes.set_xticks(calls, [f"{timesteps[i]:g}" for i in calls])
    axes.set_xlabel("timestep t, in the order of sampling")


def spaced(count: int, most: int) -> range:
    """Return at most `most` of the indices 0..count - 1, evenly spaced from the first on."""
    return range(0, count, -(-count // most))


def shortened(name: str, most: int) -> str:
    """Return the end of a name that is longer than `most` characters, after "...", and other names as they are."""
    return name if len(name) <= most else f"...{name[3 - most :]}"
