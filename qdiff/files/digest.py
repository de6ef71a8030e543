"""sha256 digests of files and tensors."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from qdiff.errors import UserError


def file_digest(path: Path) -> str:
    """Return the sha256 of a file. Raises UserError if it cannot be read."""
    try:
        sha = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(2**20):
                sha.update(chunk)
        return sha.hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): check the path") from None


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 over names, shapes, dtypes and values."""
    sha = hashlib.sha256()
    for key, x in tensors.items():
        sha.update(f"{key}{tuple(x.shape)}{x.dtype}".encode())
        sha.update(x.detach().cpu().contiguous().numpy())
    return sha.hexdigest()
