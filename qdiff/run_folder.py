"""The folder of a run: what was asked for, what happened, what came out. One process at a time works in it."""

import errno
import logging
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath

import yaml
from filelock import FileLock, Timeout
from tqdm import tqdm

from qdiff.errors import UserError
from qdiff.files.atomic import remove_leftovers, replacing

logger = logging.getLogger("qdiff")

ABSENT = "nothing"  # shown for a setting that one of two configurations lacks

_FULL = (errno.ENOSPC, errno.EDQUOT)
_UNUSABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG)


@dataclass(frozen=True)
class RunFolder:
    """A run's folder while this process, and no other, may work in it; see `open`.

    Attributes:
        path: the folder; it exists.
        flag: the flag that named it, for error messages.
    """

    path: Path
    flag: str

    @property
    def images(self) -> Path:
        """Where the pictures go."""
        return self.path / "img"

    @property
    def grid(self) -> Path:
        """The picture of the first pictures."""
        return self.path / "grid.png"

    @classmethod
    @contextmanager
    def open(cls, path: str | Path, *, flag: str = "-l", verbose: bool = False) -> Iterator["RunFolder"]:
        """Make the folder, lock it, and log everything of `qdiff` to its `log.txt` as long as the context lasts.

        Args:
            path: the folder; its parents are made too.
            flag: the flag that named it.
            verbose: log details too, and everything on the console as well, not only warnings.

        Raises:
            UserError: the path cannot be such a folder, another process works in it, or, at any time inside the
                context, a disk is full or a file may not be written.
        """
        path = Path(path)
        with _explained(path, flag), ExitStack() as stack:
            path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path / ".lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                raise UserError(
                    f"another process works in '{path}': let it end, or give another folder with {flag}"
                ) from None
            stack.callback(lock.release)
            remove_leftovers(path)
            stack.enter_context(_logging(path / "log.txt", verbose))
            yield cls(path, flag)

    def settle(self, config: Mapping[str, object], free: Collection[str] = ()) -> None:
        """Record the resolved configuration as `config.yaml`, and refuse to go on with one that gives other results.

        Args:
            config: numbers, words, truth values, None, paths, and lists and dicts of them.
            free: settings that change no result, such as the batch size; dotted where nested ("model.name"). The last
                run's value is recorded.

        Raises:
            UserError: a setting differs from that of the run in this folder, `config.yaml` is none of ours, or there
                are pictures and nothing says how they were made.
        """
        file = self.path / "config.yaml"
        text = yaml.dump(config, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
        if file.exists():
            self._refuse_other(_flat(self._read(file)), _flat(yaml.safe_load(text)), free)
        elif any(self.images.glob("*.png")):
            raise UserError(
                f"'{self.images}' holds pictures, but no config.yaml says how they were made: move them away, or give "
                f"another folder with {self.flag}"
            )
        with replacing(file) as partial:
            partial.write_text(text, encoding="utf-8")

    def _read(self, file: Path) -> dict:
        try:
            config = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError):
            config = None
        if not isinstance(config, dict):
            raise UserError(f"'{file}' is not the configuration of a run: give another folder with {self.flag}")
        return config

    def _refuse_other(self, before: dict[str, str], now: dict[str, str], free: Collection[str]) -> None:
        changed = [
            f"{key} was {before.get(key, ABSENT)} and is {now.get(key, ABSENT)} now"
            for key in before | now
            if key not in free and before.get(key, ABSENT) != now.get(key, ABSENT)
        ]
        if changed:
            raise UserError(
                f"'{self.path}' holds another run: {', '.join(changed)}; change that back, or give another folder "
                f"with {self.flag}"
            )


class _Dumper(yaml.SafeDumper):
    """Plain YAML, with paths as words."""


_Dumper.add_multi_representer(PurePath, lambda dumper, path: dumper.represent_str(str(path)))


def _flat(config: object, prefix: str = "") -> dict[str, str]:
    """The leaves of nested dicts by dotted name, as they are shown: in one line."""
    if not isinstance(config, dict) or not config:
        return {prefix: repr(config)}
    return {
        key: leaf
        for name, value in config.items()
        for key, leaf in _flat(value, f"{prefix}.{name}" if prefix else str(name)).items()
    }


@contextmanager
def _explained(path: Path, flag: str) -> Iterator[None]:
    """One line for what a file system refuses."""
    try:
        yield
    except OSError as e:
        where = e.filename or path
        if e.errno in _FULL:
            raise UserError(
                f"no space left to write '{where}': free some, then run the same command again; it continues"
            ) from e
        if e.errno in _UNUSABLE:
            raise UserError(f"cannot use '{where}' ({e.strerror}): give another folder with {flag}") from e
        raise


class _LogFile(logging.FileHandler):
    """A log that fails as other files do, where logging's own way is to print a traceback and go on."""

    def handleError(self, record: logging.LogRecord) -> None:
        raise  # noqa: PLE0704 - logging calls this where it has caught the error


class _Console(logging.Handler):
    """Lines that do not tear a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


@contextmanager
def _logging(file: Path, verbose: bool) -> Iterator[None]:
    log, console = _LogFile(file, encoding="utf-8"), _Console(logging.DEBUG if verbose else logging.WARNING)
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
        log.close()  # last, because on a full disk it raises
