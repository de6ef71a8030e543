"""PNG images of uint8 pixels, grey or RGB: checked, read and written."""

import io
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
REMEDY = "move or delete it, and run the same command again"


class _Format(NamedTuple):
    """Pixel format that the header of a PNG states."""

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
            raise UserError(f"'{path}' is not a file: {REMEDY}")
        with path.open("rb") as file:
            start = file.read(length)
            file.seek(max(0, status.st_size - len(END)))
            end = file.read(len(END))
    except OSError as e:
        raise UserError(f"'{path}' cannot be read ({e.strerror}): {REMEDY}") from e
    if len(start) < length or not start.startswith(START):
        raise UserError(f"'{path}' is not a PNG: {REMEDY}")
    if end != END:
        raise UserError(f"'{path}' is incomplete (it does not end as a PNG does): {REMEDY}")
    width, height, bits, colours = struct.unpack_from(">IIBB", start, len(START))
    return _Format(bits, COLOURS.get(colours, "colours of an unknown type"), width, height)


def check_channels(channels: int) -> None:
    """Check that images of this many channels can be written. Raises UserError otherwise."""
    if channels not in WRITTEN:
        raise UserError(f"images of {channels} channels cannot be written: use a model of 1 (grey) or 3 (RGB)")


def check_image(path: Path, shape: Shape) -> None:
    """Check the format and the completeness of a PNG by its first and last bytes, which takes microseconds.

    Args:
        path: the file.
        shape: expected (C, H, W); C is 1 (grey) or 3 (RGB).

    Raises:
        UserError: the file is missing, unreadable, not a PNG, cut short, or of another pixel format or size.
    """
    _check_format(path, _read_format(path), shape)


def image_shape(path: Path) -> Shape:
    """Return (C, H, W) of a PNG. Raises UserError as `check_image`."""
    found = _read_format(path)
    shape = (1 if found.colours == WRITTEN[1] else 3, found.height, found.width)
    _check_format(path, found, shape)
    return shape


def _check_format(path: Path, found: _Format, shape: Shape) -> None:
    channels, height, width = shape
    wanted = _Format(8, WRITTEN[channels], width, height)
    if found != wanted:
        raise UserError(f"'{path}' is a different image ({found}) than expected ({wanted}): {REMEDY}")


def image_path(folder: Path, index: int) -> Path:
    """Return the path of an image in a folder of numbered images, such as `folder`/000007.png for index 7."""
    return folder / f"{index:06d}.png"


def image_text(path: Path) -> dict[str, str]:
    """Return the text chunks of a PNG that stand before its pixels, key -> text. Raises UserError as `check_image`."""
    image_shape(path)
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return {key: str(value) for key, value in image.info.items() if isinstance(value, str)}
    except (OSError, SyntaxError, ValueError) as e:  # what Pillow raises for damaged files
        raise UserError(f"'{path}' is damaged ({e}): {REMEDY}") from e


def read_image(path: Path, shape: Shape) -> Tensor:
    """Read a PNG.

    Args:
        path: the file.
        shape: expected (C, H, W).

    Returns:
        pixels (C, H, W), uint8.

    Raises:
        UserError: as `check_image`, or the pixels are damaged.
    """
    channels, height, width = shape
    check_image(path, shape)
    try:
        with Image.open(path, formats=["PNG"]) as image:
            pixels = np.array(image)
    except (OSError, SyntaxError, ValueError) as e:  # what Pillow raises for damaged files
        raise UserError(f"'{path}' is damaged ({e}): {REMEDY}") from e
    return torch.from_numpy(pixels).view(height, width, channels).permute(2, 0, 1)


def read_images(paths: Sequence[Path]) -> Tensor:
    """Read N >= 1 PNGs of equal shape as uint8 (N, C, H, W). Raises UserError as `read_image`, or if shapes differ."""
    shape = image_shape(paths[0])
    return torch.stack([read_image(path, shape) for path in paths])


def to_uint8(images: Tensor) -> Tensor:
    """Convert images in [-1, 1] to uint8 on the CPU: round(255 clamp((x + 1) / 2, 0, 1)), ties to even; same shape."""
    return ((images.detach().float().cpu() + 1) / 2).clamp(0, 1).mul(255).round().to(torch.uint8)


def to_pillow(pixels: Tensor) -> Image.Image:
    """Convert uint8 pixels (C, H, W), grey or RGB, to a Pillow image."""
    return Image.fromarray(pixels.permute(1, 2, 0).squeeze(2).contiguous().numpy())


def write_image(path: Path, pixels: Tensor, text: Mapping[str, str] | None = None) -> None:
    """Write a PNG, which appears whole or not at all; an existing file is replaced.

    Args:
        path: the file.
        pixels: (C, H, W), uint8, on the CPU; C is 1 (grey) or 3 (RGB).
        text: text chunks of the PNG, key (1 to 79 Latin-1 characters) -> any text.

    Raises:
        OSError: the file cannot be written.
    """
    chunks = PngInfo()
    for key, value in (text or {}).items():
        chunks.add_text(key, as_text(value))
    png = io.BytesIO()  # so that a full disk raises its own error, not one of the encoder
    to_pillow(pixels).save(png, format="PNG", pnginfo=chunks)
    with replacing(path) as partial:
        partial.write_bytes(png.getvalue())
