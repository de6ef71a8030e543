"""Ranks that share a folder: the other ones are processes, for locks know no threads."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qdiff.errors import UserError
from qdiff.sampling import folder_lock
from qdiff.sampling.folder_lock import FolderLock
from qdiff.sampling.rank import ALONE, Rank

OTHER = """
import sys
from pathlib import Path
from qdiff.sampling.folder_lock import FolderLock
from qdiff.sampling.rank import Rank
folder, index, count, start, end = Path(sys.argv[1]), *map(int, sys.argv[2:])
with FolderLock.entered(folder, "-l", Rank(index, count)) as lock, lock.claim(range(start, end)) as claimed:
    print(claimed, flush=True)
    input()
"""


@contextmanager
def other(folder: Path, rank: Rank, images: range = range(100, 101)) -> Iterator[subprocess.Popen]:
    """A process of this rank that works on images."""
    words = [sys.executable, "-c", OTHER, folder, rank.index, rank.count, images.start, images.stop]
    with subprocess.Popen(
        [str(word) for word in words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout.readline() == "True\n"
            yield process
        finally:
            kill(process)


def kill(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()


@pytest.mark.parametrize(
    ("inside", "comes", "allowed"),
    [
        (ALONE, ALONE, False),
        (ALONE, Rank(0, 2), False),
        (Rank(1, 2), ALONE, False),
        (Rank(1, 2), Rank(1, 2), False),
        (Rank(1, 2), Rank(0, 2), True),
    ],
)
def test_who_may_be_in_a_folder_with_whom(inside, comes, allowed, tmp_path):
    with other(tmp_path, inside) as process:
        if allowed:
            with FolderLock.entered(tmp_path, "-l", comes) as lock:
                assert lock.rank == comes
        else:
            line = rf"^another process is using '{tmp_path}': wait until it ends, or give another folder with -l$"
            with pytest.raises(UserError, match=line), FolderLock.entered(tmp_path, "-l", comes):
                pass
        kill(process)
    with FolderLock.entered(tmp_path, "-l", comes):
        pass
    assert os.listdir(tmp_path) == [".lock"]


def test_ranks_work_on_different_images_until_one_is_killed(tmp_path):
    with FolderLock.entered(tmp_path, "-l", Rank(0, 2)) as lock, other(tmp_path, Rank(1, 2), range(4, 8)) as process:
        for images, expected in [([7, 6, 5, 4], False), ([3, 4], False), ([0, 1, 2, 3], True), ([8], True)]:
            with lock.claim(images) as claimed:
                assert claimed == expected
        kill(process)
        with lock.claim(range(4, 8)) as claimed:
            assert claimed
        with other(tmp_path, Rank(1, 2), range(4, 8)):
            pass


def test_a_claim_ends_with_an_error(tmp_path):
    with FolderLock.entered(tmp_path, "-l", Rank(0, 2)) as lock:
        with pytest.raises(KeyboardInterrupt), lock.claim([1]):
            raise KeyboardInterrupt
        with other(tmp_path, Rank(1, 2), range(0, 3)):
            pass


def later(seconds: float, action) -> None:
    threading.Timer(seconds, action).start()


def test_files_of_rank_0_are_waited_for(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(folder_lock, "QUIET", 0.1)
    monkeypatch.setattr(folder_lock, "AWAY", 0.4)
    file = tmp_path / "file"
    with FolderLock.entered(tmp_path, "-l", Rank(1, 2)) as lock, other(tmp_path, Rank(0, 2)):
        later(1.2, file.touch)
        lock.wait_for(file)
        assert file.exists()
    assert caplog.messages == [f"rank 1 waits for rank 0 to write '{file}'"], "once"
    with FolderLock.entered(tmp_path, "-l", Rank(1, 2)) as lock:
        lock.wait_for(file)  # rank 0 may have ended by now
    with FolderLock.entered(tmp_path, "-l", Rank(0, 2)) as lock:
        lock.wait_for(tmp_path / "its own")


@pytest.mark.parametrize("was_there", [False, True])
def test_a_rank_0_that_ends_or_does_not_come_is_not_waited_for(was_there, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_lock, "AWAY", 0.2)
    line = rf"^rank 0 is not using '{tmp_path}' and has not written 'file': see its output, and start all ranks again$"
    with FolderLock.entered(tmp_path, "-l", Rank(1, 2)) as lock, other(tmp_path, Rank(0, 2)) as process:
        if was_there:
            later(1, process.kill)
        else:
            kill(process)
        with pytest.raises(UserError, match=line):
            lock.wait_for(tmp_path / "file")


def test_rank_0_may_come_late_and_come_again(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_lock, "POLL", 0.05)
    file = tmp_path / "file"
    with FolderLock.entered(tmp_path, "-l", Rank(2, 3)) as lock:
        waiting = threading.Thread(target=lock.wait_for, args=(file,))
        waiting.start()
        for _ in range(2):
            with other(tmp_path, Rank(0, 3)):  # which enters although rank 2 looks for it all the time
                assert waiting.is_alive()
        file.touch()
        waiting.join()


@pytest.mark.parametrize(
    ("rank", "who", "wait"),
    [
        (Rank(0, 3), Rank(2, 3), FolderLock.wait_until_others_left),
        (Rank(1, 3), Rank(0, 3), FolderLock.wait_until_first_left),
    ],
)
def test_waiting_until_others_left(rank, who, wait, tmp_path):
    with FolderLock.entered(tmp_path, "-l", rank) as lock, other(tmp_path, who) as process:
        start = time.monotonic()
        later(1, process.kill)
        wait(lock)
        assert time.monotonic() - start >= 1
        wait(lock)


def test_a_single_process_keeps_others_out_to_the_end(tmp_path):
    with FolderLock.entered(tmp_path, "-l", ALONE) as lock:
        lock.wait_until_others_left()
        with pytest.raises(AssertionError), other(tmp_path, Rank(1, 2)):
            pass
