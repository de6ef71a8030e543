import errno
import os
import resource
import threading
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from qdiff.files import atomic
from qdiff.files.atomic import PARTIAL, naming, remove_leftovers, replacing
from tests.processes import forkserver


def test_appears_whole(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    with replacing(path) as partial:
        partial.write_bytes(b"half")
        assert not path.exists()
        assert partial.parent == path.parent, "a rename across disks is a copy"
        partial.write_bytes(b"whole")
    assert path.read_bytes() == b"whole"
    assert os.listdir(path.parent) == ["file"]


def test_replaces_what_was_there_at_the_end_only(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with replacing(str(path)) as partial:
        partial.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_who_may_read_it_is_the_users_choice(umask, mode, tmp_path):
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "file") as partial:
            partial.touch(0o600)
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_the_old_file(error, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(error), replacing(path) as partial:
        partial.write_bytes(b"half")
        raise error
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_nothing_written_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "file"):
        pass
    assert os.listdir(tmp_path) == []


def test_the_content_is_on_the_disk_before_the_name(tmp_path, monkeypatch):
    """Or a power cut leaves an empty file under the new name."""
    events = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(atomic.os, "fsync", lambda fd: (events.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)))
    monkeypatch.setattr(Path, "replace", lambda self, target: (events.append("replace"), replace(self, target)))
    with replacing(tmp_path / "file") as partial:
        partial.write_bytes(b"x")
    assert events == [str(partial), "replace"]


def write_forever(path: Path, ready) -> None:
    for i in range(10**9):
        with replacing(path) as partial, partial.open("wb", buffering=0) as file:
            for _ in range(50):
                file.write(bytes([i % 256]) * 1000)
        ready.set()


def test_killed_at_any_moment(tmp_path):
    path = tmp_path / "file"
    context = forkserver()
    leftovers = kills = 0
    while kills < 5 or not leftovers:
        delay = (0, 0.001, 0.003, 0.007, 0.02)[kills % 5]
        kills += 1
        ready = context.Event()
        process = context.Process(target=write_forever, args=(path, ready))
        process.start()
        assert ready.wait(60)
        threading.Event().wait(delay)
        process.kill()
        process.join()
        content = path.read_bytes()
        assert len(content) == 50_000 and len(set(content)) == 1
        leftovers += len(list(tmp_path.glob(f"*{PARTIAL}")))
        remove_leftovers(tmp_path)
        assert os.listdir(tmp_path) == ["file"]
        assert kills < 200, "no kill came in the middle of a file"


def test_leftovers_are_files_with_the_suffix_and_nothing_else(tmp_path):
    with replacing(tmp_path / "a") as partial:
        partial.write_bytes(b"")
        name = partial.name
    (tmp_path / name).touch()
    (tmp_path / f"weights{PARTIAL}").touch()
    (tmp_path / "partial").touch()
    (tmp_path / f"x{PARTIAL}.txt").touch()
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / f"y{PARTIAL}").touch()
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["a", "below", "partial", f"x{PARTIAL}.txt"]
    assert os.listdir(tmp_path / "below") == [f"y{PARTIAL}"]


def refused_by(write: Callable[[Path], object], path: Path) -> OSError:
    """Return the error of a write that the system refuses, and check that it leaves nothing."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError) as caught, replacing(path) as partial:
            write(partial)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(path.parent) == []
    return caught.value


def save_array(path: Path) -> None:
    with ZipFile(path, "w") as archive, archive.open("x", "w") as member:
        for _ in range(50):
            member.write(bytes(1000))


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(bytes(5000)),
        lambda path: path.open("wb", buffering=0).truncate(5000),
        lambda path: save_file({"x": torch.zeros(5000)}, path),
        save_array,
    ],
)
def test_the_file_is_named_that_grows_too_large(write, tmp_path):
    error = refused_by(write, tmp_path / "file")
    assert (error.errno, error.filename, error.filename2) == (errno.EFBIG, str(tmp_path / "file"), None)


def test_the_file_is_named_that_cannot_be_replaced(tmp_path):
    (tmp_path / "file").mkdir()
    with pytest.raises(IsADirectoryError) as caught, replacing(tmp_path / "file") as partial:
        partial.touch()
    assert (caught.value.filename, caught.value.filename2) == (str(tmp_path / "file"), None)


def test_other_errors_keep_their_names(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, naming(tmp_path / "file"):
        (tmp_path / "other").read_bytes()
    assert caught.value.filename == str(tmp_path / "other")
    for error in (OSError("of a library"), SafetensorError("header too large"), ValueError()):
        with pytest.raises(type(error)) as caught, naming(tmp_path / "file"):
            raise error
        assert caught.value is error
