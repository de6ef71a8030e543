"""Sampled images in memory."""

import io
from collections.abc import Mapping
from types import MappingProxyType

from PIL import Image
from torch import Tensor

from qdiff.files.grid import grid_of
from qdiff.files.images import to_pillow


class Images(list[Image.Image]):
    """A list of PIL images.

    Args:
        tensor: their pixels, uint8 of shape (N, 1 or 3, H, W).
        text: how they were sampled, as the text chunks of a PNG state it; see `qdiff.pipelines.png_text`.
    """

    def __init__(self, tensor: Tensor, text: Mapping[str, str] = MappingProxyType({})):
        super().__init__(map(to_pillow, tensor))
        self.tensor, self.text = tensor, text

    def _repr_png_(self) -> bytes:
        """Show the images as one grid in a notebook."""
        file = io.BytesIO()
        to_pillow(grid_of(self.tensor)).save(file, "png")
        return file.getvalue()
