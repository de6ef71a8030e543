"""What an operating system refuses, in one line with a remedy that fits."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qdiff.errors import UserError

CONTINUE = "then the same command continues"
ELSEWHERE = "give another folder with {flag}"
# What to do -> the numbers of the errors where it helps; `{flag}` names the run's folder
REMEDIES = {
    f"free some space, {CONTINUE}": (errno.ENOSPC, errno.EDQUOT),
    f"raise the limit (`ulimit -f`, or that of the disk), {CONTINUE}; or {ELSEWHERE}": (errno.EFBIG,),
    f"see that its disk is there and works, {CONTINUE}; or {ELSEWHERE}": (
        *(errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.ETIMEDOUT),
        *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.EREMOTE),
    ),
    f"see that it is there, {CONTINUE}; or {ELSEWHERE}": (errno.ENOENT,),
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
DEFAULT = f"mend that, {CONTINUE}; or {ELSEWHERE}"  # for all others


@contextmanager
def explaining(path: Path, flag: str) -> Iterator[None]:
    """Turn what the system refuses inside into a UserError.

    Args:
        path: what is worked on, for errors that name no file.
        flag: the flag that gave it.
    """
    try:
        yield
    except BrokenPipeError:  # of whoever reads the output
        raise
    except OSError as e:
        if e.errno not in errno.errorcode:  # not the system's: libraries derive their own errors
            raise
        where = e.filename2 or e.filename or path
        remedy = REMEDY.get(e.errno, DEFAULT).format(flag=flag)
        raise UserError(f"cannot use '{where}' ({e.strerror}): {remedy}") from e
