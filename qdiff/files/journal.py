"""Crash-safe record of a job: one file per finished unit of work, written whole or not at all."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from qdiff.errors import UserError
from qdiff.files.atomic import remove_leftovers, replacing
from qdiff.files.names import utf8_name


class Journal:
    """Finished units of one job, in a folder. A killed job loses at most the unit in progress.

    Args:
        folder: created if missing.
        job: everything that the units depend on (settings, digests), JSON values.

    Raises:
        UserError: the folder belongs to a job with other settings, data or weights, or its record is damaged.
    """

    def __init__(self, folder: Path, job: Mapping[str, object]):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        record = folder / "job.json"
        described = json.loads(json.dumps(job))  # as a reader sees it: tuples as lists
        if record.exists():
            _check_same_job(record, described)
        else:
            with replacing(record) as partial:
                partial.write_text(json.dumps(described, indent=1, sort_keys=True))

    def _file(self, unit: str) -> Path:
        return self.folder / f"{unit}.safetensors"

    def write(self, unit: str, tensors: Mapping[str, Tensor], info: Mapping[str, Any] | None = None) -> None:
        """Record a finished unit.

        Args:
            unit: its name, valid in file names.
            tensors: its results, of any shape, dtype and device.
            info: numbers about it, JSON values.

        Raises:
            OSError: the record cannot be written.
        """
        with replacing(self._file(unit)) as partial:
            save_file({k: v.contiguous() for k, v in tensors.items()}, partial, {"info": json.dumps(info or {})})

    def read(self, unit: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the tensors of a unit, on the CPU, shapes and dtypes as written, and the numbers about it.

        None if the record is missing or damaged, so that the unit must be redone.
        """
        try:
            with utf8_name(self._file(unit)) as file, safe_open(file, "pt") as stored:
                names = list(stored.keys())
                return {k: stored.get_tensor(k) for k in names}, json.loads((stored.metadata() or {})["info"])
        except (FileNotFoundError, SafetensorError, ValueError, KeyError):
            return None


@contextmanager
def temporary_journal() -> Iterator[Journal]:
    """Yield a journal in a temporary folder (see `tempfile.gettempdir`), which is removed at the end."""
    with TemporaryDirectory(prefix="qdiff-") as folder:
        yield Journal(Path(folder), {})


def _check_same_job(record: Path, job: dict) -> None:
    try:
        stored = json.loads(record.read_text())
    except ValueError:
        stored = None
    if not isinstance(stored, dict):
        raise UserError(f"'{record}' is damaged: delete '{record.parent}' to start afresh")
    changed = sorted(key for key in stored.keys() | job.keys() if stored.get(key) != job.get(key))
    if changed:
        key = changed[0]
        raise UserError(
            f"'{record.parent}' holds results for other {', '.join(changed)} ({key}: {stored.get(key)} there, "
            f"{job.get(key)} now): give another folder, or delete this one to start afresh"
        )
