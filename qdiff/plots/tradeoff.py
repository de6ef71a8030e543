"""Quality against cost."""

from collections.abc import Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any, NamedTuple

from qdiff.analysis.tradeoff import MethodResult
from qdiff.plots.style import drawing, line_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Quantity(NamedTuple):
    """What an axis shows: its title, and the factor from the number of a results file to the unit of the title."""

    title: str
    factor: float = 1.0


KNOWN = {
    "size": Quantity("file of the network [MB]", 1e-6),
    "bops": Quantity("bit operations per image [T]", 1e-12),
    "step_bops": Quantity("bit operations per step [T]", 1e-12),
    "bits": Quantity("bits per parameter, in the file"),
    "psnr": Quantity("PSNR to full precision [dB]"),
    "mae": Quantity("distance to full precision [0..255]"),
    "frechet": Quantity("Fréchet distance (of the report)"),
    "recognised": Quantity("category recognised [%]", 100),
}
COLUMNS = 2
LONGEST = 32  # characters of a line beside an axis


def draw_tradeoff(results: Sequence[MethodResult], metric: str = "psnr", cost: str = "size") -> "Figure":
    """Draw a metric of methods against what they cost, a panel for each model.

    Args:
        results: of one or several models; those without the metric, as the PSNR of full precision, are left out.
        metric, cost: keys of `MethodResult.numbers`.

    Raises:
        UserError: matplotlib is not installed.
    """
    shown = [result for result in results if {metric, cost} <= result.numbers.keys()]
    models = list(dict.fromkeys(result.model for result in shown))
    methods = list(dict.fromkeys(result.method for result in shown))
    columns = min(COLUMNS, len(models))
    rows = -(-len(models) // columns)
    with drawing(2.5 * rows + 0.2 * len(methods)) as figure:
        panels = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes, model in zip(panels, models):
            own = [result for result in shown if result.model == model]
            x, y = (_quantity(key, own) for key in (cost, metric))
            for result in own:
                style = _marker(methods.index(result.method))
                axes.plot(result.numbers[cost] * x.factor, result.numbers[metric] * y.factor, **style)
            axes.set_title(model, loc="left")
            axes.set_xlabel(x.title)
            axes.set_ylabel(fill(y.title, LONGEST))
            axes.grid()
            axes.margins(0.12)
            costs = [result.numbers[cost] * x.factor for result in own]
            axes.set_xlim(0, 1.15 * max(costs))  # from 0, so that files of almost the same size lie side by side
        for axes in panels[len(models) :]:
            axes.set_visible(False)
        # one entry for each method, whichever models it was applied to
        marks = [panels[0].plot([], [], **_marker(i))[0] for i in range(len(methods))]
        figure.legend(marks, methods, loc="outside lower left", ncols=2)
    return figure


def _quantity(key: str, results: Sequence[MethodResult]) -> Quantity:
    """Return what an axis shows; the files know best what their metrics are called."""
    titles = [result.titles[key] for result in results if key in result.titles]
    return Quantity(titles[0]) if titles else KNOWN.get(key, Quantity(key))


def _marker(i: int) -> dict[str, Any]:
    return line_style(i) | {"linestyle": "none", "markersize": 8}
