"""The two halves of a split shortcut."""

from typing import TYPE_CHECKING

from qdiff.analysis.split import Halves, SplitShortcut
from qdiff.plots.style import COLOURS, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_split(path: str, shortcut: SplitShortcut) -> "Figure":
    """Draw histograms of the weights and of the input of a shortcut, each half by itself.

    Args:
        path: of the layer.
        shortcut: its histograms.

    Raises:
        UserError: matplotlib is not installed.
    """
    below, skip = shortcut.channels
    names = [f"from the layer below, {below} channels", f"from the skip connection, {skip} channels"]
    with drawing(3.1) as figure:
        left, right = figure.subplots(1, 2)
        _draw_halves(left, shortcut.weights, "weight")
        _draw_halves(right, shortcut.activations, "input, all timesteps")
        left.set_ylabel("share of the half's values")
        figure.suptitle(path, x=0.02, ha="left", fontsize="medium")
        figure.legend(left.get_legend_handles_labels()[0], names, loc="outside lower center", ncols=2)
    return figure


def _draw_halves(axes: "Axes", halves: Halves, name: str) -> None:
    edges, (below, skip) = halves.edges.numpy(), halves.shares.numpy()
    axes.stairs(below, edges, fill=True, color=COLOURS[5], alpha=0.8, label="below")
    axes.stairs(skip, edges, color=COLOURS[1], linewidth=1.6, label="skip")
    axes.set_yscale("log")
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel(name)
    axes.set_title(f"ranges differ by {halves.ratio:.2g} x", loc="left")
