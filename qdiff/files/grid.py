"""An overview of several images in one PNG."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from qdiff.files.images import image_shape, read_images, write_image

PADDING = 2  # pixels around each image


def write_grid(
    images: Sequence[Path], path: Path, columns: int | None = None, text: Mapping[str, str] | None = None
) -> None:
    """Write images into one PNG, row by row.

    Args:
        images: PNGs of equal shape, at least one.
        path: the PNG, replaced if it exists.
        columns: images per row; None makes the grid as square as possible.
        text: text chunks, see `write_image`.

    Raises:
        UserError: as `read_images`; nothing is written.
    """
    write_image(path, grid_of(read_images(images), columns), text)


def grid_of(images: Tensor, columns: int | None = None) -> Tensor:
    """Join images, uint8 of shape (N, 1 or 3, H, W), row by row into one image; see `write_grid`."""
    from torchvision.utils import make_grid  # slow to import and used only here

    grid = make_grid(images, nrow=columns or math.ceil(len(images) ** 0.5), padding=PADDING)
    return grid[: images.shape[1]]  # make_grid repeats a grey channel three times


def columns_of(grid: Path, width: int) -> int:
    """Return the number of images `width` pixels wide in a row of a grid. Raises UserError if it cannot be read."""
    return (image_shape(grid)[2] - PADDING) // (width + PADDING)
