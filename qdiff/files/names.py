"""File names for libraries that accept only UTF-8."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


@contextmanager
def utf8_name(path: str | Path) -> Iterator[str | Path]:
    """Yield the path or, if its bytes are not UTF-8, a temporary link to it."""
    if os.fsencode(path).decode("utf-8", "ignore") == os.fspath(path):
        yield path
        return
    with TemporaryDirectory() as folder:
        link = Path(folder, "link")
        link.symlink_to(Path(path).absolute())
        yield link
