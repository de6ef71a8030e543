"""One array of all images, as the tools that compute FID expect it."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import numpy as np

from qdiff.files.atomic import replacing
from qdiff.files.images import image_shape, read_image

MEMBER = "arr_0.npy"


def write_array(images: Sequence[Path], folder: Path) -> Path:
    """Write PNGs of equal shape as one array, `folder`/NxHxWxC-samples.npz.

    Its only member, `arr_0`, is uint8 of shape (N, H, W, C). One image at a time is in memory, and the file appears
    whole or not at all. Arrays of other numbers of such images in the folder are deleted. A complete array that is
    newer than all images is kept as it is.

    Args:
        images: N >= 1 PNGs.
        folder: created if missing.

    Returns:
        path of the array.

    Raises:
        UserError: as `read_images`; nothing is written.
        OSError: the array cannot be written.
    """
    channels, height, width = shape = image_shape(images[0])
    header = _header((len(images), height, width, channels))
    name = f"x{height}x{width}x{channels}-samples.npz"
    path = folder / f"{len(images)}{name}"
    newest = max(image.stat().st_mtime_ns for image in images)
    size = len(header) + len(images) * math.prod(shape)
    if path.exists() and path.stat().st_mtime_ns > newest and _holds(path, size):
        return path
    with (
        replacing(path) as partial,
        ZipFile(partial, "w", ZIP_STORED) as archive,
        archive.open(ZipInfo(MEMBER), "w", force_zip64=True) as member,  # the date of 1980: equal runs, equal files
    ):
        member.write(header)
        for image in images:
            member.write(read_image(image, shape).permute(1, 2, 0).contiguous().numpy().tobytes())
    for other in folder.glob(f"*{name}"):
        if other != path and other.name.removesuffix(name).isdecimal():
            other.unlink()
    return path


def _header(shape: tuple[int, ...]) -> bytes:
    """Return the header of an .npy file of uint8."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return header.getvalue()


def _holds(path: Path, size: int) -> bool:
    """Return whether the file is a complete archive whose array has `size` bytes."""
    try:
        with ZipFile(path) as archive:
            return archive.getinfo(MEMBER).file_size == size
    except (OSError, BadZipFile, KeyError):
        return False
