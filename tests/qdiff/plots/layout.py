"""Checks what a reader sees of a figure: texts that are cut off or lie upon each other."""

from collections.abc import Iterator
from itertools import combinations

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from qdiff.plots.style import styled

TOUCHING = 1  # pixels by which boxes of texts may overlap


def texts(figure: Figure) -> Iterator[Text]:
    """Yield the texts of a figure that are in view."""
    yield from figure.texts
    for legend in figure.legends:
        yield from legend.get_texts()
    for axes in figure.axes:
        if axes.get_visible():
            yield from _texts_of(axes)


def _texts_of(axes: Axes) -> Iterator[Text]:
    yield from axes.texts
    yield from (child for child in axes.get_children() if isinstance(child, Text))  # titles
    if axes.axison:
        for axis in (axes.xaxis, axes.yaxis):
            yield axis.label
            low, high = sorted(axis.get_view_interval())
            for minor in (False, True):
                ticks = zip(axis.get_ticklocs(minor=minor), axis.get_ticklabels(minor=minor))
                yield from (label for place, label in ticks if low <= place <= high)


def check_layout(figure: Figure) -> None:
    """Check that every text lies within the figure, and none upon another."""
    with styled():
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        shown = {text for text in texts(figure) if text.get_visible() and text.get_text().strip()}
        boxes = {text: text.get_window_extent(canvas.get_renderer()) for text in shown}
    assert len(boxes) > 1
    width, height = figure.bbox.width, figure.bbox.height
    for text, box in boxes.items():
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1
        assert inside, f"'{text.get_text()}' is cut off"
    for (a, first), (b, second) in combinations(boxes.items(), 2):
        both = Bbox.intersection(first, second)
        overlap = both is not None and min(both.width, both.height) > TOUCHING
        assert not overlap, f"'{a.get_text()}' lies upon '{b.get_text()}'"
