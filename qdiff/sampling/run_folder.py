"""The folder of a run: what was asked for, what happened, what came out. One process at a time works in it."""

import errno
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import accumulate, takewhile
from pathlib import Path, PurePath

import yaml
from filelock import FileLock, Timeout

from qdiff.errors import UserError
from qdiff.files.atomic import remove_leftovers, replacing
from qdiff.files.log import logging_to
from qdiff.files.refusals import explaining

ABSENT = "nothing"  # shown for a setting that one of two configurations lacks
SHOWN = 24  # characters of a value that was changed
LISTED = 150  # characters of changed settings in one line


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
                context, the system refuses to read or write a file.
        """
        path = Path(path)
        with explaining(path, flag), ExitStack() as stack:
            path.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_locked(path, flag))
            remove_leftovers(path)
            stack.enter_context(logging_to(path / "log.txt", verbose))
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
        sections = list(dict.fromkeys(key.partition(".")[0] for key in before | now))
        changed = [
            _change(key, before.get(key, ABSENT), now.get(key, ABSENT))
            for key in sorted(before | now, key=lambda key: sections.index(key.partition(".")[0]))
            if key not in free and before.get(key) != now.get(key)
        ]
        if changed:
            raise UserError(
                f"'{self.path}' holds another run: {_in_short(changed)}; change that back, or give another folder with "
                f"{self.flag}"
            )


def _change(key: str, before: str, now: str) -> str:
    """What became of a setting; of long values, what follows where they begin to differ."""
    start = 0
    if max(len(before), len(now)) > SHOWN:
        equal = takewhile(lambda pair: pair[0] == pair[1], zip(before, now))
        start = max(0, sum(1 for _ in equal) - SHOWN // 3)
    shown = ["..." * (start > 0) + v[start:][:SHOWN] + "..." * (len(v) > start + SHOWN) for v in (before, now)]
    return f"{key} was {shown[0]} and is {shown[1]} now"


def _in_short(changes: Sequence[str]) -> str:
    """As many as fit into a line, at least the first one, and how many more there are."""
    lengths = accumulate(len(change) + 2 for change in changes)
    fit = max(1, sum(length <= LISTED for length in lengths))
    more = f" and {len(changes) - fit} more" if fit < len(changes) else ""
    return ", ".join(changes[:fit]) + more


@contextmanager
def _locked(path: Path, flag: str) -> Iterator[None]:
    lock = FileLock(path / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"another process works in '{path}': let it end, or give another folder with {flag}") from None
    except NotImplementedError as e:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK), str(path / ".lock")) from e
    try:
        yield
    finally:
        lock.release()


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
