"""Files that appear whole or not at all."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

PARTIAL = ".partial"  # suffix of what is being written; leftovers of a killed process may be deleted


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write to the path that is yielded; on leaving it takes the place of `path`, on an exception it is deleted.

    What the system refuses is an OSError that names `path`, whoever writes.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    with naming(path, partial):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            partial.chmod(0o666 & ~_umask())  # some writers make files that only their owner can read
            with partial.open("rb") as done:
                os.fsync(done.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def naming(path: Path, *aliases: Path) -> Iterator[None]:
    """Name `path` in what the system refuses inside, where the error names no file or one of these `aliases`."""
    try:
        yield
    except OSError as e:
        if e.errno is None or e.filename not in (None, *map(str, aliases)):
            raise
        raise OSError(e.errno, e.strerror, str(path)) from e
    except SafetensorError as e:  # which tells a refused write in its text alone
        number = re.search(r"\(os error (\d+)\)", str(e))
        if not number:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from e


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def remove_leftovers(folder: Path) -> None:
    """Delete what killed processes left half-written in `folder`, which must be in use by this process alone."""
    for partial in folder.glob(f"*{PARTIAL}"):
        partial.unlink(missing_ok=True)
