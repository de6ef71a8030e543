"""Images of quantized networks, and how they differ from full precision."""

from typing import TYPE_CHECKING

from qdiff.analysis.images import ComparedImages
from qdiff.files.grid import grid_of
from qdiff.files.images import to_pillow
from qdiff.plots.style import FONT, WIDTH, drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE, TALLEST = 0.27, 1.8  # inches: height of a title, of a row of images at most


def draw_images(compared: ComparedImages) -> "Figure":
    """Draw a row of images in full precision, and for each network its images and their enlarged differences.

    Args:
        compared: the images; a column for each.

    Raises:
        UserError: matplotlib is not installed.
    """
    rows = {"full precision": compared.reference}
    for name, images in compared.images.items():
        rows[name] = images
        rows[f"{name}: {compared.gain} x difference to full precision, grey where there is none"] = compared.enlarged(
            name
        )
    sheets = {title: to_pillow(grid_of(images, len(images))) for title, images in rows.items()}
    sheet = next(iter(sheets.values()))
    height = min(TALLEST, WIDTH * sheet.height / sheet.width)
    with drawing((height + TITLE) * len(sheets)) as figure:
        for axes, (title, shown) in zip(figure.subplots(len(sheets), 1, squeeze=False).flatten(), sheets.items()):
            axes.imshow(shown, interpolation="nearest", cmap="gray", vmin=0, vmax=255)
            axes.set_title(title, loc="left", fontsize=FONT)
            axes.set_axis_off()
            axes.set_anchor("W")
    return figure
