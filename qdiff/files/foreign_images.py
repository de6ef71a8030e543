"""Images that other programs wrote: PNG, JPEG and WebP, 8-bit grey or RGB, read as they are and never converted."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from qdiff.errors import UserError
from qdiff.files.images import Shape, image_shape, read_image

PNG = "PNG"
FORMATS = {".png": PNG, ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WebP"}  # by extension, in small letters
LOSSY = [name for name in dict.fromkeys(FORMATS.values()) if name != PNG]
MODES = {"L": 1, "RGB": 3}  # Pillow's name -> channels
KINDS = {"CMYK": "CMYK", "YCCK": "CMYK", "RGBA": "RGB with transparency"}
REMEDY = "convert it to 8-bit RGB, replace it or move it away"


def format_of(path: Path) -> str | None:
    """Return "PNG", "JPEG" or "WebP" by the extension of a file; None for others."""
    return FORMATS.get(path.suffix.lower())


def list_images(folder: Path) -> list[Path]:
    """Return the images of a folder, by their extensions, sorted by name. Raises UserError if it cannot be read."""
    try:
        return sorted(path for path in folder.iterdir() if format_of(path))
    except OSError as e:
        raise UserError(f"'{folder}' cannot be read ({e.strerror}): give another folder") from e


def foreign_shape(path: Path) -> Shape:
    """Return (C, H, W) by the header of an image; C is 1 (grey) or 3 (RGB).

    Raises:
        UserError: the file is missing, unreadable, of another format than its extension says, animated, or neither
            8-bit grey nor RGB.
    """
    if format_of(path) == PNG:
        return image_shape(path)
    with _opened(path) as image:
        return _shape_of(image)


def read_foreign(path: Path, shape: Shape) -> Tensor:
    """Read an image.

    Args:
        path: the file.
        shape: expected (C, H, W); a grey image among RGB ones gets three equal channels.

    Returns:
        pixels (C, H, W), uint8.

    Raises:
        UserError: as `foreign_shape`; the pixels are damaged, or the shape is another one.
    """
    if format_of(path) == PNG:
        own = image_shape(path)
        _check_same(path, own, shape)
        return read_image(path, own).expand(shape)
    with _opened(path) as image:
        own = channels, height, width = _shape_of(image)
        _check_same(path, own, shape)
        pixels = np.array(image)
    return torch.from_numpy(pixels).view(height, width, channels).permute(2, 0, 1).expand(shape)


def _check_same(path: Path, own: Shape, shape: Shape) -> None:
    channels, height, width = own
    if own[1:] != shape[1:] or channels > shape[0]:
        raise UserError(f"'{path}' is of {width} x {height} pixels and {channels} channels now: leave files alone")


def _shape_of(image: Image.Image) -> Shape:
    return MODES[image.mode], image.height, image.width


def common_shape(paths: Sequence[Path]) -> Shape:
    """Return (C, H, W) of images of one size; C is 3 if one of them is RGB.

    Raises:
        UserError: as `foreign_shape`, or the sizes differ.
    """
    first, channels = foreign_shape(paths[0]), 1
    for path in paths:
        shape = foreign_shape(path)
        if shape[1:] != first[1:]:
            sizes = [f"{x[2]} x {x[1]} ('{name}')" for x, name in ((first, paths[0].name), (shape, path.name))]
            raise UserError(
                f"'{path.parent}' has images of {' and '.join(sizes)} pixels: crop and resize them to one size first, "
                "as those that they are compared with were"
            )
        channels = max(channels, shape[0])
    return channels, *first[1:]


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a JPEG or WebP; what Pillow raises for damaged files becomes a UserError."""
    kind = format_of(path)
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for ever
            raise UserError(f"'{path}' is not a file: move it away")
        with Image.open(path, formats=[str(kind)]) as image:
            if image.mode not in MODES or getattr(image, "is_animated", False):
                what = KINDS.get(image.mode, image.mode) if image.mode not in MODES else "animated"
                raise UserError(f"'{path}' is {what}, not 8-bit grey or RGB: {REMEDY}")
            yield image
    except UnidentifiedImageError as e:
        raise UserError(f"'{path}' is not an intact {kind}: {REMEDY}") from e
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as e:
        raise UserError(f"'{path}' cannot be read ({getattr(e, 'strerror', None) or e}): {REMEDY}") from e
