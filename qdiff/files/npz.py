"""Archives of numpy arrays (`.npz`): images read a few at a time, small arrays as a whole; never a pickle."""

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from zipfile import BadZipFile, ZipFile
from zlib import error as ZlibError

import numpy as np
import torch
from torch import Tensor

from qdiff.errors import UserError
from qdiff.files.arrays import MEMBER
from qdiff.files.images import WRITTEN, Shape

REMEDY = "give another file"


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what numpy and zipfile raise for missing and damaged archives into UserErrors."""
    try:
        yield
    except (BadZipFile, ZlibError, EOFError, ValueError, NotImplementedError) as e:
        raise UserError(f"'{path}' is not an intact .npz archive ({' '.join(str(e).split())}): {REMEDY}") from e
    except OSError as e:
        raise UserError(f"'{path}' cannot be read ({e.strerror or e}): {REMEDY}") from e


def array_names(path: Path) -> list[str]:
    """Return the names of the arrays in an archive. Raises UserError if it cannot be read as one."""
    with _explained(path), ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def read_small(path: Path, names: Collection[str]) -> Mapping[str, Tensor]:
    """Read numeric arrays of an archive into float64 tensors of their shapes.

    Raises:
        UserError: an array is missing, damaged, not numeric, or not finite.
    """
    with _explained(path), np.load(path, allow_pickle=False) as archive:
        missing = [name for name in names if name not in archive.files]
        if missing:
            raise UserError(f"'{path}' has no array '{missing[0]}': {REMEDY}")
        found = {name: torch.from_numpy(archive[name].astype(np.float64)) for name in names}
    for name, x in found.items():
        if not x.isfinite().all():
            raise UserError(f"'{path}', array '{name}' holds NaN or infinity: {REMEDY}")
    return found


@dataclass(frozen=True)
class StoredImages:
    """The images `arr_0` of an archive, uint8 of shape (N, H, W, C), as ADM and `write_array` write them.

    Attributes:
        path: the archive.
        count: N >= 1.
        shape: (C, H, W); C is 1 or 3.
    """

    path: Path
    count: int
    shape: Shape

    @classmethod
    def open(cls, path: Path) -> "StoredImages":
        """Read the header. Raises UserError if there are no images of this kind."""
        with _explained(path), ZipFile(path) as archive:
            if MEMBER not in archive.namelist():
                raise UserError(f"'{path}' has no array 'arr_0' of images (N, H, W, C): {REMEDY}")
            with archive.open(MEMBER) as member:
                shape, fortran, dtype = _header(member)
        if dtype != np.uint8 or len(shape) != 4 or fortran or shape[-1] not in WRITTEN or 0 in shape:
            raise UserError(
                f"'{path}', array 'arr_0' is {dtype} of shape {shape}: give images as uint8 of shape (N, H, W, 1 or 3)"
            )
        count, height, width, channels = shape
        return cls(path, count, (channels, height, width))

    def batches(self, size: int) -> Iterator[Tensor]:
        """Yield the images in order, uint8 of shape (B, C, H, W), B = `size` but for the last batch.

        Raises:
            UserError: the archive is damaged.
        """
        channels, height, width = self.shape
        with _explained(self.path), ZipFile(self.path) as archive, archive.open(MEMBER) as member:
            _header(member)
            for start in range(0, self.count, size):
                rows = min(size, self.count - start)
                content = member.read(rows * math.prod(self.shape))
                if len(content) < rows * math.prod(self.shape):
                    raise ValueError("the array ends early")
                pixels = torch.frombuffer(bytearray(content), dtype=torch.uint8)
                yield pixels.view(rows, height, width, channels).permute(0, 3, 1, 2)
            if member.read(1):  # which also makes zipfile compare the checksum of the last bytes
                raise ValueError("the array goes on after its end")


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read the header of an .npy file: shape, whether it is in Fortran order, and dtype."""
    version = np.lib.format.read_magic(member)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(member)
    return np.lib.format.read_array_header_2_0(member)
