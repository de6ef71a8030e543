"""Files of pictures: PNGs of uint8 pixels, grey or RGB."""

import io
import math
import stat
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from qdiff.errors import UserError
from qdiff.files.atomic import replacing
from qdiff.files.prompts import as_text

Shape = tuple[int, int, int]  # channels, height and width of an image

START, END = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\0\0\0\0IEND\xaeB`\x82"
COLOURS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGBA"}  # the colour types of PNG
WRITTEN = {1: "grey", 3: "RGB"}  # by channels
REMEDY = "move or delete it, and the same command makes it again"


class _Format(NamedTuple):
    """What a PNG says of its pixels before they come."""

    bits: int
    colours: str
    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.bits}-bit {self.colours}, {self.width} x {self.height}"


def _read_format(path: Path) -> _Format:
    length = len(START) + struct.calcsize(">IIBB")
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise UserError(f"'{path}' is no file: {REMEDY}")
        with path.open("rb") as file:
            start = file.read(length)
            file.seek(max(0, status.st_size - len(END)))
            end = file.read(len(END))
    except OSError as e:
        raise UserError(f"'{path}' cannot be read ({e.strerror}): {REMEDY}") from e
    if len(start) < length or not start.startswith(START):
        raise UserError(f"'{path}' is no PNG: {REMEDY}")
    if end != END:
        raise UserError(f"'{path}' is not a whole picture (it does not end as a PNG does): {REMEDY}")
    width, height, bits, colours = struct.unpack_from(">IIBB", start, len(START))
    return _Format(bits, COLOURS.get(colours, "colours of an unknown type"), width, height)


def check_channels(channels: int) -> None:
    """Raise UserError unless pictures of so many channels can be written."""
    if channels not in WRITTEN:
        raise UserError(f"images of {channels} channels cannot be written: take a model of 1 (grey) or 3 (RGB)")


def check_picture(path: Path, shape: Shape) -> None:
    """Look at the first and last bytes of a PNG, which takes microseconds, for its format and whether it is complete.

    Args:
        path: the file.
        shape: (C, H, W) of the pixels that it should hold, grey or RGB.

    Raises:
        UserError: missing, no file, unreadable, no PNG, cut short, or with pixels of another kind or number.
    """
    channels, height, width = shape
    found, wanted = _read_format(path), _Format(8, WRITTEN[channels], width, height)
    if found != wanted:
        raise UserError(f"'{path}' is another picture ({found}) than belongs there ({wanted}): {REMEDY}")


def picture_shape(path: Path) -> Shape:
    """(C, H, W) of a PNG. Raises UserError as `check_picture`."""
    found = _read_format(path)
    shape = (1 if found.colours == WRITTEN[1] else 3, found.height, found.width)
    check_picture(path, shape)
    return shape


def read_picture(path: Path, shape: Shape) -> Tensor:
    """uint8 pixels (C, H, W) of a PNG of this shape. Raises UserError as `check_picture`, and if they are damaged."""
    channels, height, width = shape
    check_picture(path, shape)
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            pixels = np.array(picture)
    except (OSError, SyntaxError, ValueError) as e:  # what Pillow raises for damaged files
        raise UserError(f"'{path}' is not a whole picture ({e}): {REMEDY}") from e
    return torch.from_numpy(pixels).view(height, width, channels).permute(2, 0, 1)


def read_pictures(paths: Sequence[Path]) -> Tensor:
    """PNGs as uint8 (N, C, H, W). Raises UserError as `read_picture` for one that is not as the first one."""
    shape = picture_shape(paths[0])
    return torch.stack([read_picture(path, shape) for path in paths])


def as_image(pixels: Tensor) -> Image.Image:
    """uint8 pixels (C, H, W), grey or RGB, for Pillow."""
    return Image.fromarray(pixels.permute(1, 2, 0).squeeze(2).contiguous().numpy())


def write_picture(path: Path, pixels: Tensor, text: Mapping[str, str]) -> None:
    """Write uint8 pixels (C, H, W), grey or RGB, as a PNG that appears whole or not at all.

    Args:
        path: is replaced if it exists.
        pixels: on the CPU.
        text: chunks of the PNG, key (1 to 79 Latin-1 characters) to any text.
    """
    chunks = PngInfo()
    for key, value in text.items():
        chunks.add_text(key, as_text(value))
    png = io.BytesIO()  # a full disk then fails with its own error, not with one of the encoder
    as_image(pixels).save(png, format="PNG", pnginfo=chunks)
    with replacing(path) as partial:
        partial.write_bytes(png.getvalue())


def write_grid(
    pictures: Sequence[Path], path: Path, columns: int | None = None, text: Mapping[str, str] | None = None
) -> None:
    """Write one PNG of several, row by row; in a square without `columns`.

    Args:
        pictures: PNGs of equal shape.
        path, text: see `write_picture`.

    Raises:
        UserError: as `read_pictures`; nothing is written.
    """
    from torchvision.utils import make_grid  # slow to load, and needed here alone

    pixels = read_pictures(pictures)
    grid = make_grid(pixels, nrow=columns or math.ceil(len(pictures) ** 0.5))
    write_picture(path, grid[: pixels.shape[1]], text or {})  # of one channel it makes three alike
