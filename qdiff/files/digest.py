"""SHA-256 digests of files and tensors, as 64 hexadecimal characters."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from qdiff.errors import UserError

CHUNK = 2**20  # bytes of a file read at a time


def digest(parts: Iterable[bytes | memoryview]) -> str:
    """Return the digest of the concatenation of `parts`."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part)
    return sha.hexdigest()


def file_digest(path: Path) -> str:
    """Return the digest of a file. Raises UserError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return digest(iter(lambda: file.read(CHUNK), b""))
    except OSError as e:
        raise UserError(f"cannot read '{path}' ({e.strerror}): check the path") from e


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the digest of names, shapes, dtypes and values, in the order of the mapping."""
    return digest(_described(tensors.items()))


def tensor_bytes(x: Tensor) -> memoryview:
    """Return the values of a tensor of any shape and dtype as bytes, in row-major order."""
    return x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _described(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[bytes | memoryview]:
    for name, x in tensors:
        yield f"{name}{tuple(x.shape)}{x.dtype}".encode()
        yield tensor_bytes(x)
