"""Files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial"  # suffix of what is being written; leftovers of a killed process may be deleted


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write to the path that is yielded; on leaving it takes the place of `path`, on an exception it is deleted."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        yield partial
        partial.chmod(0o666 & ~_umask())  # some writers make files that only their owner can read
        with partial.open("rb") as done:
            os.fsync(done.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def remove_leftovers(folder: Path) -> None:
    """Delete what killed processes left half-written in `folder`, which must be in use by this process alone."""
    for partial in folder.glob(f"*{PARTIAL}"):
        partial.unlink(missing_ok=True)
