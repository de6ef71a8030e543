import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qdiff.files.locks import RangeLocks

HOLD = """
import sys
from pathlib import Path
from qdiff.files.locks import RangeLocks
with RangeLocks.of(Path(sys.argv[1])) as locks:
    print(locks.take(int(sys.argv[2]), int(sys.argv[3])), flush=True)
    input()
"""


@contextmanager
def another(path: Path, start: int, count: int) -> Iterator[subprocess.Popen]:
    """A process that takes these numbers."""
    words = [sys.executable, "-c", HOLD, str(path), str(start), str(count)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "True\n"
            yield process
        finally:
            process.kill()


def test_no_two_processes_hold_a_number(tmp_path):
    path = tmp_path / "lock"
    with RangeLocks.of(path) as locks, another(path, 10, 5) as other:
        assert not any(locks.take(*numbers) for numbers in [(10, 1), (14, 1), (0, 100), (8, 3), (14, 2)])
        assert not locks.are_free(12) and locks.are_free(15, 2**40)
        assert locks.take(0, 10) and locks.take(15, 7) and locks.take(3)
        assert path.read_bytes() == b""
        other.kill()
        other.wait()
        assert locks.take(12)


def test_what_is_freed_or_closed_is_free(tmp_path):
    path = tmp_path / "lock"
    with RangeLocks.of(path) as locks:
        assert locks.take(0, 10)
        locks.free(4, 2)
        with another(path, 4, 2):
            assert not locks.are_free(5)
        assert locks.are_free(4, 2)
        with another(path, 4, 2):
            pass
    with another(path, 0, 10):
        pass


@pytest.mark.parametrize("method", ["take", "free", "are_free"])
def test_a_refusal_of_the_system_names_the_file(method, tmp_path, monkeypatch):
    def lockf(*_args):
        raise OSError(37, "No locks available")

    path = tmp_path / "lock"
    with RangeLocks.of(path) as locks:
        monkeypatch.setattr("fcntl.lockf", lockf)
        with pytest.raises(OSError, match="No locks available") as caught:
            getattr(locks, method)(0)
    assert caught.value.filename == str(path)
