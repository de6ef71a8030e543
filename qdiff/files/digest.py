"""SHA-256 digests of files and tensors, as 64 hexadecimal characters."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

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


def canonical_json(value: Any) -> str:
    """Return the one text that a JSON value has in headers: keys sorted, no spaces. Raises ValueError for NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def content_digest(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return the digest of a header of JSON values and of each tensor's name, dtype, shape and values, by name."""
    parts: list[bytes | memoryview] = [canonical_json(header).encode()]
    for key, x in sorted(tensors.items()):
        parts += [canonical_json([key, str(x.dtype), list(x.shape)]).encode(), tensor_bytes(x)]
    return digest(parts)


def tensor_bytes(x: Tensor) -> memoryview:
    """Return the values of a tensor of any shape and dtype as bytes, in row-major order."""
    return x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _described(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[bytes | memoryview]:
    for name, x in tensors:
        yield f"{name}{tuple(x.shape)}{x.dtype}".encode()
        yield tensor_bytes(x)
