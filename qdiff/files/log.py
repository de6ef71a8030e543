"""Log of a run: everything in a file, warnings on the console."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from qdiff.files.atomic import naming

logger = logging.getLogger("qdiff")


class _File(logging.FileHandler):
    """A file handler that raises OSErrors; logging's own prints a traceback and continues."""

    def emit(self, record: logging.LogRecord) -> None:
        with naming(Path(self.baseFilename)):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        raise  # noqa: PLE0704 - called by logging while it handles the error

    def close(self) -> None:
        with naming(Path(self.baseFilename)):
            super().close()  # which raises on a full disk


class _Console(logging.Handler):
    """A handler whose lines do not break a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


@contextmanager
def logging_to(file: Path, verbose: bool) -> Iterator[None]:
    """Log everything of `qdiff` to a file inside the context, and the exception that ends it.

    Args:
        file: appended to if it exists; in UTF-8, with escapes for bytes of paths that are not UTF-8.
        verbose: log details too, and log to the console as well, where only warnings appear otherwise.

    Raises:
        OSError: the file cannot be written, at any time inside the context.
    """
    log = _File(file, encoding="utf-8", errors="backslashreplace")
    console = _Console(logging.DEBUG if verbose else logging.WARNING)
    log.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    console.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    level_before = logger.level
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    logger.addHandler(log)
    logger.addHandler(console)
    try:
        yield
    except BaseException as e:
        logger.info("stopped by %s: %s", type(e).__name__, e)
        raise
    finally:
        logger.setLevel(level_before)
        logger.removeHandler(log)
        logger.removeHandler(console)
        log.close()
