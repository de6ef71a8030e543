"""Files that appear whole or not at all."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

PARTIAL = ".partial"  # suffix of a file that is being written


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path to write to. On leaving, the file replaces `path`; on an exception, it is deleted.

    Args:
        path: its folder is created if missing.

    Raises:
        OSError: the file cannot be written; the error names `path`, also where a library raised it.
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
    """Make OSErrors inside, and refused writes of safetensors, name `path` instead of no file or one of `aliases`."""
    try:
        yield
    except OSError as e:
        if e.errno is None or e.filename not in (None, *map(str, aliases)):
            raise
        raise OSError(e.errno, e.strerror, str(path)) from e
    except SafetensorError as e:  # whose text alone tells that a write was refused
        number = re.search(r"\(os error (\d+)\)", str(e))
        if not number:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from e


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def remove_leftovers(folder: Path) -> None:
    """Delete files that killed processes left half-written in `folder`, which only this process may be using."""
    for partial in folder.glob(f"*{PARTIAL}"):
        partial.unlink(missing_ok=True)
