"""The lock of a run's folder: one process may use it, or the ranks of one job, each on its own images."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qdiff.errors import UserError
from qdiff.files.locks import RangeLocks
from qdiff.sampling.rank import MOST, Rank

IMAGES = MOST  # numbers from here on stand for images, those below for ranks

POLL = 0.5  # seconds between two looks at what other ranks do
ENTRY = 0.5  # seconds that entering takes at most, because others may be looking who is there
QUIET = 10.0  # seconds of waiting without a word
AWAY = 180.0  # seconds that others wait while rank 0 is not there: it may come later, or be started again

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FolderLock:
    """This process's hold on a folder; see `entered`.

    Ranks know of each other by their locks alone, so one that is killed is not waited for: its images are free again.

    Attributes:
        folder: the folder.
        rank: this process.
        locks: of all processes in the folder.
    """

    folder: Path
    rank: Rank
    locks: RangeLocks

    @classmethod
    @contextmanager
    def entered(cls, folder: Path, flag: str, rank: Rank) -> Iterator["FolderLock"]:
        """Be in the folder, inside.

        Args:
            folder: it exists.
            flag: the command-line flag that names it.
            rank: this process; if it is alone, nobody else may be there, else no process of the same rank.

        Raises:
            UserError: another process is there that may not be.
            OSError: the folder's disk has no locks, or the system refuses to write.
        """
        with RangeLocks.of(folder / ".lock") as locks:
            places = (0, MOST) if rank.alone else (rank.index, 1)
            latest = time.monotonic() + ENTRY
            while not locks.take(*places):
                if time.monotonic() > latest:
                    raise UserError(
                        f"another process is using '{folder}': wait until it ends, or give another folder with {flag}"
                    )
                time.sleep(ENTRY / 10)
            yield cls(folder, rank, locks)

    @contextmanager
    def claim(self, images: Sequence[int]) -> Iterator[bool]:
        """Claim images, inside; yield False if another process has one of them, or one between them."""
        start, count = IMAGES + min(images), max(images) - min(images) + 1
        claimed = self.locks.take(start, count)
        try:
            yield claimed
        finally:
            if claimed:
                self.locks.free(start, count)

    def wait_for(self, file: Path) -> None:
        """Wait until rank 0 has written a file; rank 0 itself does not wait.

        Raises:
            UserError: rank 0 ended before, or does not come.
        """
        if self.rank.first:
            return
        seen, wait = time.monotonic(), _Wait(f"rank {self.rank.index} waits for rank 0 to write '{file}'")
        while True:
            if not self.locks.are_free(0):  # asked before the file, which is there before rank 0 leaves
                seen = time.monotonic()
            if file.exists():
                return
            if time.monotonic() > seen + AWAY:
                raise UserError(
                    f"rank 0 is not using '{self.folder}' and has not written '{file.name}': see its output, and start "
                    "all ranks again"
                )
            wait.sleep()

    def wait_until_first_left(self) -> None:
        """Wait, as another rank, until rank 0 is not in the folder."""
        self._wait_until_left(0, 1, "rank 0")

    def wait_until_others_left(self) -> None:
        """Wait, as rank 0, until no other rank is in the folder."""
        if not self.rank.alone:
            self._wait_until_left(1, MOST - 1, "the other ranks")

    def _wait_until_left(self, start: int, count: int, who: str) -> None:
        wait = _Wait(f"rank {self.rank.index} waits for {who} to leave '{self.folder}'")
        while not self.locks.are_free(start, count):
            wait.sleep()


class _Wait:
    """Sleeps, and says once what for."""

    def __init__(self, message: str):
        self.message, self.told, self.start = message, False, time.monotonic()

    def sleep(self) -> None:
        if not self.told and time.monotonic() > self.start + QUIET:
            log.warning(self.message)
            self.told = True
        time.sleep(POLL)
