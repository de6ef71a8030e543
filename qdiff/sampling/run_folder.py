"""The folder of a run: its configuration, log and images. One process may use it, or the ranks of one job."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import accumulate, takewhile
from pathlib import Path, PurePath

import yaml

from qdiff.errors import UserError
from qdiff.files.atomic import remove_leftovers, replacing
from qdiff.files.log import logging_to
from qdiff.files.refusals import explaining
from qdiff.sampling.folder_lock import FolderLock
from qdiff.sampling.rank import ALONE, Rank

CALIBRATION_DATA = "calibration_data.safetensors"  # file that a calibration leaves in the folder
ABSENT = "nothing"  # stands for a setting that one of two configurations lacks
SHOWN = 24  # characters shown of a changed value
LISTED = 150  # characters of changed settings in one line


@dataclass(frozen=True)
class RunFolder:
    """A run's folder, locked for this process; see `open`.

    Attributes:
        path: the folder; it exists.
        flag: the command-line flag that names it, for error messages.
        lock: this process's hold on it.
    """

    path: Path
    flag: str
    lock: FolderLock

    @property
    def rank(self) -> Rank:
        """This process among those that share the folder."""
        return self.lock.rank

    @property
    def image_dir(self) -> Path:
        """Folder of the images."""
        return self.path / "img"

    @property
    def grid(self) -> Path:
        """Overview of the first images."""
        return self.path / "grid.png"

    @classmethod
    @contextmanager
    def open(
        cls, path: str | Path, *, flag: str = "-l", verbose: bool = False, rank: Rank = ALONE
    ) -> Iterator["RunFolder"]:
        """Create and lock the folder, and log everything of `qdiff`, inside the context.

        The log is `log.txt`, that of further ranks `log_rank1.txt` and so on. Files in the folder itself are written by
        rank 0 alone, an image by the rank that claims it.

        Args:
            path: the folder; its parents are created too.
            flag: the command-line flag that names it.
            verbose: log details too, and log to the console as well, where only warnings appear otherwise.
            rank: this process among those that share the folder.

        Raises:
            UserError: the path cannot be a folder, another process is using it, or, at any time inside the context,
                the system refuses to read or write a file.
        """
        path = Path(path)
        with explaining(path, flag), ExitStack() as stack:
            path.mkdir(parents=True, exist_ok=True)
            folder = cls(path, flag, stack.enter_context(FolderLock.entered(path, flag, rank)))
            if rank.first:
                remove_leftovers(path)
            if rank.alone:
                remove_leftovers(folder.image_dir)
            log = "log.txt" if rank.first else f"log_rank{rank.index}.txt"
            stack.enter_context(logging_to(path / log, verbose))
            yield folder

    def record_config(self, config: Mapping[str, object], resumable: Collection[str] = ()) -> None:
        """Write the resolved configuration to `config.yaml`, unless the folder holds a run with another one.

        Rank 0 writes; the others wait for it, and compare.

        Args:
            config: JSON-like values and paths; nested dicts are compared key by key.
            resumable: settings that may differ from those of the run in this folder, such as the batch size, because
                they change no result; dotted where nested ("model.name"). The latest value is recorded.

        Raises:
            UserError: another setting differs, `config.yaml` is not the configuration of a run, there are images but
                no `config.yaml`, or rank 0 has ended.
        """
        file = self.path / "config.yaml"
        self.lock.wait_for(file)
        if file.exists():
            self._refuse_other(self._read(file), config, resumable)
        elif any(self.image_dir.glob("*.png")):
            raise UserError(
                f"'{self.image_dir}' holds images, but no config.yaml says how they were made: move them away, or give "
                f"another folder with {self.flag}"
            )
        if self.rank.first:
            with replacing(file) as partial:
                partial.write_text(_as_yaml(config), encoding="utf-8")

    def _read(self, file: Path) -> dict:
        try:
            config = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError):
            config = None
        if not isinstance(config, dict):
            raise UserError(f"'{file}' is not the configuration of a run: give another folder with {self.flag}")
        return config

    def _refuse_other(self, before: Mapping, now: Mapping[str, object], resumable: Collection[str]) -> None:
        if changed := changes(before, now, resumable):
            raise UserError(
                f"'{self.path}' holds another run: {changed}; change that back, or give another folder with {self.flag}"
            )


def changes(recorded: Mapping, config: Mapping[str, object], ignored: Collection[str] = ()) -> str:
    """Describe in one line what differs between configurations; empty if nothing does.

    Args:
        recorded: as `config.yaml` has it.
        config, ignored: as `config` and `resumable` of `RunFolder.record_config`.
    """
    before, now = _flat(recorded), _flat(yaml.safe_load(_as_yaml(config)))
    sections = list(dict.fromkeys(key.partition(".")[0] for key in before | now))
    changed = [
        _change(key, before.get(key, ABSENT), now.get(key, ABSENT))
        for key in sorted(before | now, key=lambda key: sections.index(key.partition(".")[0]))
        if key not in ignored and before.get(key) != now.get(key)
    ]
    return _in_short(changed) if changed else ""


def _change(key: str, before: str, now: str) -> str:
    """Describe a changed setting; long values are shown from where they begin to differ."""
    start = 0
    if max(len(before), len(now)) > SHOWN:
        equal = takewhile(lambda pair: pair[0] == pair[1], zip(before, now))
        start = max(0, sum(1 for _ in equal) - SHOWN // 3)
    shown = ["..." * (start > 0) + v[start:][:SHOWN] + "..." * (len(v) > start + SHOWN) for v in (before, now)]
    return f"{key} was {shown[0]} and is {shown[1]} now"


def _in_short(changes: Sequence[str]) -> str:
    """List as many changes as fit into a line, at least one, and the number of the others."""
    lengths = accumulate(len(change) + 2 for change in changes)
    fit = max(1, sum(length <= LISTED for length in lengths))
    more = f" and {len(changes) - fit} more" if fit < len(changes) else ""
    return ", ".join(changes[:fit]) + more


class _Dumper(yaml.SafeDumper):
    """Plain YAML, with paths as strings."""


_Dumper.add_multi_representer(PurePath, lambda dumper, path: dumper.represent_str(str(path)))


def _as_yaml(config: Mapping[str, object]) -> str:
    return yaml.dump(config, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _flat(config: object, prefix: str = "") -> dict[str, str]:
    """Flatten nested dicts: dotted name -> value as shown, in one line."""
    if not isinstance(config, dict) or not config:
        return {prefix: repr(config)}
    return {
        key: leaf
        for name, value in config.items()
        for key, leaf in _flat(value, f"{prefix}.{name}" if prefix else str(name)).items()
    }
