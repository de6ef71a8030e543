"""The error of each layer at each step, as a heat map."""

import math
from itertools import groupby
from typing import TYPE_CHECKING

from qdiff.analysis.layer_errors import LayerErrors
from qdiff.plots.style import SHADES, SMALL, drawing, timestep_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABEL = "relative squared error of a layer's output"
LEAST, EACH, NAME = 2.5, 0.095, 0.14  # inches: height of a map at least, of a layer, of a block's name
BAR = 0.18  # inches: width of the bar of shades
DECADES = 4  # below the largest error, that shades tell apart


def draw_layer_errors(errors: LayerErrors, name: str) -> "Figure":
    """Draw relative squared errors of layers (rows, in the order of the network) at steps (columns).

    Args:
        errors: the errors.
        name: of the quantized network.

    Raises:
        UserError: matplotlib is not installed.
    """
    height = max(LEAST, EACH * len(errors.layers))
    values = errors.errors.numpy()
    shown = values[(values > 0) & (values < math.inf)]
    high = shown.max(initial=0.0) or 1.0
    low = max(shown[shown < high].min(initial=high / 10), high / 10**DECADES)
    with drawing(height + 0.9) as figure:
        axes = figure.subplots()
        axes.set_facecolor("lightgrey")  # where an error is 0 or unknown
        image = axes.imshow(values, aspect="auto", norm="log", cmap=SHADES, interpolation="nearest")
        image.set_clim(low, high)
        timestep_axis(axes, errors.timesteps)
        _name_blocks(axes, errors.blocks, math.ceil(NAME * len(errors.layers) / height))
        axes.set_title(f"{name}: errors within the whole network", loc="left")
        extend = "min" if (shown < low).any() else "neither"
        figure.colorbar(image, label=LABEL, aspect=height / BAR, pad=0.02, extend=extend)
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
