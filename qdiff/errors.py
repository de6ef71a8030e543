"""The error that users see, and words for its messages."""

import difflib
from collections.abc import Collection, Iterable


class UserError(Exception):
    """An error that the user can fix. The message is one line: what, where (file or flag), what to do.

    The command line prints it after `error:` and exits with status 2; no half-written file is left behind.
    """


def first_of(names: Collection[str]) -> str:
    """Word several names for a message: the first one in quotes, and how many more there are."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"'{next(iter(names))}'{more}"


def suggestion(word: str, known: Iterable[str]) -> str | None:
    """Return "did you mean ...?" for the closest known word; None if none is close."""
    close = difflib.get_close_matches(word.lower(), known, n=1)
    return f"did you mean {close[0]}?" if close else None
