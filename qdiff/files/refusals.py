"""Errors of the operating system as one line with a remedy."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qdiff.errors import UserError

CONTINUE = "then the same command continues"
ELSEWHERE = "give another folder with {flag}"
# Remedy -> error numbers; `{flag}` is the flag that names the folder
REMEDIES = {
    f"free some space, {CONTINUE}": (errno.ENOSPC, errno.EDQUOT),
    f"raise the limit (`ulimit -f`, or that of the disk), {CONTINUE}; or {ELSEWHERE}": (errno.EFBIG,),
    f"check that its disk is mounted and works, {CONTINUE}; or {ELSEWHERE}": (
        *(errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.ETIMEDOUT),
        *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.EREMOTE),
    ),
    f"check that it exists, {CONTINUE}; or {ELSEWHERE}": (errno.ENOENT,),
    f"{ELSEWHERE}, on another disk": (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EXDEV),
    f"close other programs or raise the limit (`ulimit -n`), {CONTINUE}": (errno.EMFILE, errno.ENFILE),
    f"close other programs, {CONTINUE}": (errno.ENOMEM, errno.EAGAIN, errno.EBUSY, errno.ETXTBSY),
    f"move it away, or {ELSEWHERE}": (errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY),
    ELSEWHERE: (
        *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG),
        *(errno.ELOOP, errno.EILSEQ, errno.EINVAL, errno.EMLINK),
    ),
}
REMEDY = {number: remedy for remedy, numbers in REMEDIES.items() for number in numbers}
DEFAULT = f"fix that, {CONTINUE}; or {ELSEWHERE}"  # for all others


@contextmanager
def explaining(path: Path, flag: str) -> Iterator[None]:
    """Turn OSErrors of the operating system inside into UserErrors; libraries' own OSErrors pass unchanged.

    Args:
        path: file or folder in use, for errors that name none.
        flag: the flag or argument that names it.
    """
    try:
        yield
    except BrokenPipeError:  # the reader of our output has gone
        raise
    except OSError as e:
        if e.errno not in errno.errorcode:  # a library's own error
            raise
        where = e.filename2 or e.filename or path
        remedy = REMEDY.get(e.errno or 0, DEFAULT).format(flag=flag)
        raise UserError(f"cannot use '{where}' ({e.strerror}): {remedy}") from e
