"""Names of files for libraries that take them in UTF-8 alone."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


@contextmanager
def utf8_name(path: str | Path) -> Iterator[str | Path]:
    """The path or, where its bytes are no UTF-8, that of a link to it, as long as the context lasts."""
    if os.fsencode(path).decode("utf-8", "ignore") == os.fspath(path):
        yield path
        return
    with TemporaryDirectory() as folder:
        link = Path(folder, "link")
        link.symlink_to(Path(path).absolute())
        yield link
