"""Packages that exported networks need, which are optional."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

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


def lacking_packages(engine: str) -> str | None:
    """Say which packages an engine, "openvino" or "onnxruntime", lacks and how to get them; None if none."""
    missing = [name for name in ("onnx", "onnxscript", engine) if find_spec(name) is None]
    extra = {"openvino": "openvino", "onnxruntime": "onnx"}[engine]
    return f"{' and '.join(missing)} cannot be imported: pip install 'qdiff[{extra}]'" if missing else None
