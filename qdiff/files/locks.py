"""Locks that processes hold on numbers: no two on the same one, and none after its end, however it ends."""

import errno
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from qdiff.files.atomic import naming

HELD = (errno.EAGAIN, errno.EACCES)  # what systems answer where another process holds a lock


class RangeLocks:
    """Ranges of whole numbers that this process holds, among all processes that open the same file.

    They are POSIX record locks, on bytes that the file need not have. Processes on several machines see each other's if
    the file's disk has locks. Within one process they exclude nobody: open a file once at a time.
    """

    def __init__(self, path: Path, file: BinaryIO):
        self.path, self._file = path, file

    @classmethod
    @contextmanager
    def of(cls, path: Path) -> Iterator["RangeLocks"]:
        """Yield the locks of a file, created if missing; on leaving, what this process holds is free again.

        Raises:
            OSError: the system refuses, here or in the methods; the error names `path`.
        """
        with path.open("ab") as file:
            yield cls(path, file)

    def take(self, start: int, count: int = 1) -> bool:
        """Take `count` >= 1 numbers from `start` >= 0 on, unless another process holds one; return whether it did."""
        try:
            with naming(self.path):
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, count, start)
        except OSError as e:
            if e.errno not in HELD:
                raise
            return False
        return True

    def free(self, start: int, count: int = 1) -> None:
        """Free numbers, which this process need not hold."""
        with naming(self.path):
            fcntl.lockf(self._file, fcntl.LOCK_UN, count, start)

    def are_free(self, start: int, count: int = 1) -> bool:
        """Return whether no process holds one of these numbers, of which this one must hold none.

        They are taken for a moment, in which others that try to take them cannot.
        """
        taken = self.take(start, count)
        if taken:
            self.free(start, count)
        return taken
