"""The error of each layer at each step, as a heat map."""

import math
from itertools import groupby
from typing import TYPE_CHECKING

from qdiff.analysis.layer_errors import LayerErrors
from qdiff.plots.style import SHADES, SMALL, drawing, timestep_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEAST, EACH, NAME = 2.5, 0.095, 0.14  # inches: height of a map at least, of a layer, of a block's name
DECADES = 4  # below the largest error, that shades tell apart


def draw_layer_errors(errors: LayerErrors, title: str = "") -> "Figure":
    """Draw relative squared errors of layers (rows, in the order of the network) at steps (columns).

    Args:
        errors: the errors.
        title: above the map, such as the name of the quantized file.

    Raises:
        UserError: matplotlib is not installed.
    """
    height = max(LEAST, EACH * len(errors.layers))
    values = errors.errors.numpy()
    largest = values[values < math.inf].max()
    with drawing(height + 0.9) as figure:
        axes = figure.subplots()
        axes.set_facecolor("lightgrey")  # where an error is 0 or unknown
        image = axes.imshow(values, aspect="auto", norm="log", cmap=SHADES, interpolation="nearest")
        image.set_clim(largest / 10**DECADES, largest)
        timestep_axis(axes, errors.timesteps)
        _name_blocks(axes, errors.blocks, math.ceil(NAME * len(errors.layers) / height))
        axes.set_title(title, loc="left")
        figure.colorbar(image, label="relative squared error of a layer's output", aspect=40, pad=0.02, extend="min")
    return figure


def _name_blocks(axes: "Axes", blocks: tuple[str, ...], apart: int) -> None:
    """Separate blocks by lines, and name each at its middle unless the last name is less than so many rows above."""
    axes.tick_params(axis="y", length=0)
    first, named = 0, {-math.inf: ""}
    for path, layers in groupby(blocks):
        count = len(list(layers))
        middle = first + (count - 1) / 2
        if middle - max(named) >= apart:
            named[middle] = path
        first += count
        axes.axhline(first - 0.5, color="white", linewidth=0.5)
    del named[-math.inf]
    axes.set_yticks(list(named), list(named.values()), fontsize=SMALL)
