"""Ranges of activations over the timesteps of sampling."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qdiff.analysis.ranges import LEVELS, PREDICTION, ActivationRanges
from qdiff.plots.style import SMALL, drawing, shortened, timestep_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 2
SHOWN = 5  # sites, by default, besides the prediction
LONGEST = 48  # characters of a site's name above its panel
BANDS = {"minimum to maximum": "#d0e4f0", "1 % to 99 %": "#86bada", "25 % to 75 %": "#2a88bf"}  # ever darker


def draw_ranges(ranges: ActivationRanges, sites: Sequence[str] = ()) -> "Figure":
    """Draw the range of some activations over the timesteps, a panel for each.

    Args:
        ranges: the quantiles.
        sites: keys of `ranges.quantiles`; by default the prediction and the five whose range changes most.

    Raises:
        UserError: matplotlib is not installed.
    """
    sites = sites or [PREDICTION, *ranges.most_changing(SHOWN)]
    columns = min(COLUMNS, len(sites))
    rows = -(-len(sites) // columns)
    with drawing(0.75 + 1.55 * rows) as figure:
        panels = figure.subplots(rows, columns, squeeze=False, sharex=True).flatten()
        for axes, site in zip(panels, sites):
            _draw_site(axes, ranges, site)
        for axes in panels[: len(sites)][-columns:]:  # the last of every column
            timestep_axis(axes, ranges.timesteps)
            axes.tick_params(labelbottom=True)
        for axes in panels[len(sites) :]:
            axes.set_visible(False)
        figure.align_ylabels()
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=SMALL)
    return figure


def _draw_site(axes: "Axes", ranges: ActivationRanges, site: str) -> None:
    quantiles, calls = ranges.quantiles[site].T.numpy(), range(len(ranges.timesteps))
    for i, (label, colour) in enumerate(BANDS.items()):
        axes.fill_between(calls, quantiles[i], quantiles[-1 - i], color=colour, lw=0, label=label)
    axes.plot(calls, quantiles[len(LEVELS) // 2], color="black", label="median")
    axes.set_title(shortened(site, LONGEST), loc="left", fontsize=SMALL)
    axes.set_ylabel("prediction" if site == PREDICTION else "input", fontsize=SMALL)
    axes.grid(axis="y")
    axes.margins(x=0)
