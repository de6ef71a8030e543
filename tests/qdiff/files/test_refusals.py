import errno
import os
from pathlib import Path

import pytest

from qdiff.errors import UserError
from qdiff.files.refusals import explaining


def said(error: OSError) -> str:
    """Return the one line made of an error."""
    with pytest.raises(UserError) as caught, explaining(Path("run"), "--outdir"):
        raise error
    assert "\n" not in str(caught.value) and "{" not in str(caught.value)
    assert caught.value.__cause__ is error
    return str(caught.value)


def of(number: int, *files: str) -> str:
    return said(OSError(number, os.strerror(number), *files))


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EFBIG, "ulimit -f"),
        (errno.EIO, "its disk"),
        (errno.ESTALE, "its disk"),
        (errno.ENODEV, "its disk"),
        (errno.ENXIO, "its disk"),
        (errno.ENOTCONN, "its disk"),
        (errno.ETIMEDOUT, "its disk"),
        (errno.ENOENT, "check that it exists"),
        (errno.ENOLCK, "another folder with --outdir, on another disk"),
        (errno.ENOSYS, "another folder with --outdir, on another disk"),
        (errno.EMFILE, "ulimit -n"),
        (errno.ELOOP, "another folder with --outdir"),
        (errno.EILSEQ, "another folder with --outdir"),
        (errno.EACCES, "another folder with --outdir"),
        (errno.EROFS, "another folder with --outdir"),
    ],
)
def test_each_error_has_a_remedy_that_fits(number, remedy):
    line = of(number, "/x/y")
    assert line.startswith(f"cannot use '/x/y' ({os.strerror(number)}): ") and remedy in line


@pytest.mark.parametrize("number", sorted(set(errno.errorcode) - {errno.EPIPE, errno.ESHUTDOWN}))
def test_no_error_of_the_system_is_without_one(number):
    assert of(number).startswith(f"cannot use 'run' ({os.strerror(number)}): ")


def test_the_file_is_named_that_was_to_be_written():
    assert of(errno.EISDIR, "grid.png.partial", None, "grid.png").startswith("cannot use 'grid.png' ")


@pytest.mark.parametrize(
    "error", [OSError("of a library"), OSError(-2, "name not known"), BrokenPipeError(32, "x"), KeyError(1)]
)
def test_what_is_none_of_the_system_stays_what_it_is(error):
    with pytest.raises(type(error)) as caught, explaining(Path("run"), "-l"):
        raise error
    assert caught.value is error
