"""Errors along the trajectory of sampling."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from qdiff.analysis.trajectory import TrajectoryErrors
from qdiff.plots.style import drawing, line_style, spaced, timestep_axis

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = "eps, on the trajectory of full precision", "x after the step, on its own trajectory"
MARKED = 25  # steps, at most


def draw_trajectory(errors: Mapping[str, TrajectoryErrors]) -> "Figure":
    """Draw the errors of quantized networks at each step: of eps, and of what sampling has reached.

    Args:
        errors: name of the network -> its errors, at the same timesteps; at least one.

    Raises:
        UserError: matplotlib is not installed.
    """
    with drawing(3.2 + 0.12 * len(errors)) as figure:
        panels = figure.subplots(1, 2)
        for i, (name, each) in enumerate(errors.items()):
            for axes, values in zip(panels, (each.eps, each.distance)):
                axes.plot(values, label=name, markevery=list(spaced(len(values), MARKED)), **line_style(i))
        for axes, title in zip(panels, TITLES):
            axes.set_yscale("log")
            axes.set_title(title, loc="left")
            axes.grid()
            timestep_axis(axes, each.timesteps)
        panels[0].set_ylabel("relative squared error")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower left", ncols=2)
    return figure
