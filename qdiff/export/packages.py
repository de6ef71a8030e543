"""Packages that exported networks need, which are optional."""

from collections.abc import Iterator
from contextlib import contextmanager

from qdiff.errors import UserError


@contextmanager
def needed(extra: str) -> Iterator[None]:
    """Turn a failed import inside into one line.

    Args:
        extra: what brings the package, "onnx" or "openvino".

    Raises:
        UserError: a package is missing.
    """
    try:
        yield
    except ImportError as e:
        raise UserError(f"exported networks need a package ({e}): pip install 'qdiff[{extra}]'") from e
