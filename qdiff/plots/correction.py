"""A correction of the predicted noise: its numbers at each step."""

from typing import TYPE_CHECKING

from torch import Tensor

from qdiff.correction.table import CorrectionTable
from qdiff.plots.style import drawing, line_style, spaced, timestep_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NORMAL = 1.96  # standard errors of a 95 % interval
MARKED = 25  # steps, at most


def draw_correction(table: CorrectionTable) -> "Figure":
    """Draw slope, bias and residual deviation at each step, each channel for itself, with intervals of 95 %.

    Args:
        table: as measured; what is off is said in the titles.

    Raises:
        UserError: matplotlib is not installed.
    """
    same = bool((table.slope == table.slope[:, :1]).all())  # the paper's fit has one slope for all channels
    slope = (table.slope[:, :1], table.slope_error[:, :1]) if same else (table.slope, table.slope_error)
    shown = {
        "slope": slope,
        "bias": (table.bias, table.bias_error),
        "variance": (table.std[:, None], table.std_error[:, None]),
    }
    names = {"slope": "slope", "bias": "bias", "variance": "residual deviation"}
    with drawing(6) as figure:
        panels = figure.subplots(3, 1, sharex=True)
        for axes, (part, (values, errors)) in zip(panels, shown.items()):
            _draw(axes, values, errors)
            axes.set_title(f"{names[part]}, {'on' if table.parts[part].on else 'off'}", loc="left")
            axes.grid()
        timestep_axis(panels[-1], table.timesteps)
        figure.legend(*panels[1].get_legend_handles_labels(), loc="outside lower left", ncols=4)
    return figure


def _draw(axes: "Axes", values: Tensor, errors: Tensor) -> None:
    for channel, (line, error) in enumerate(zip(values.T, errors.T)):
        style = line_style(channel)
        marks = list(spaced(len(line), MARKED))
        axes.plot(line.tolist(), label=f"channel {channel}", markevery=marks, **style)
        low, high = ((line + sign * NORMAL * error).tolist() for sign in (-1, 1))
        axes.fill_between(range(len(line)), low, high, color=style["color"], alpha=0.2, linewidth=0)
