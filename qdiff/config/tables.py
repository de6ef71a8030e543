"""Tables of published values: their rows as arguments of sampling scripts, and what the values are of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from qdiff.errors import UserError, suggestion

SCRIPTS = ("ddim", "ldm", "txt2img")

Arguments = Mapping[str, Any]  # long name of a flag -> value; true for a flag without one


@dataclass
class Weights:
    """Section `weights` of a table: which full-precision weights the values are of.

    Attributes:
        argument: flag of the script that names them.
        how: how to get them.
        file: their path; empty if the script downloads them.
        published: name in `qdiff/files/published.json`; empty if they are not there.
        sha256: digest; empty if none is known. Those in `published.json` have theirs there.
    """

    argument: str
    how: str
    file: str = ""
    published: str = ""
    sha256: str = ""


@dataclass
class Reference:
    """Section `reference` of a table: what distributions are compared with.

    Attributes:
        how: how to get it; empty if no value of the table needs it.
        file: its path; empty if it is given with `--reference`.
        images: how many images it is of; 0 if that is not stated.
    """

    how: str = ""
    file: str = ""
    images: int = field(default=0, metadata={"minimum": 0})


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: of its file, without number and ending.
        title, source, published: as in `RowFile`.
        arguments: all arguments of the script but the folder.
        needs: names of rows whose files the arguments name.
    """

    name: str
    title: str
    source: str
    arguments: Arguments
    published: Mapping[str, float]
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table of published values. Attributes as in `TableFile`; the first row is in full precision."""

    name: str
    title: str
    script: str
    images: int
    features: str
    weights: Weights
    reference: Reference
    rows: tuple[Row, ...]
    metrics: tuple[str, ...] = ()
    few: bool = False

    def selected(self, names: Sequence[str]) -> "Table":
        """Return the table with these rows, the first, and those needed. Raises UserError for an unknown name."""
        known = {row.name: row for row in self.rows}
        wanted: set[str] = set()
        waiting = [self.rows[0].name, *names]
        while waiting:
            name = waiting.pop()
            if name not in known:
                hint = suggestion(name, known) or f"use {', '.join(known)}"
                raise UserError(f"--rows: table '{self.name}' has no row '{name}': {hint}")
            wanted.add(name)
            waiting += [need for need in known[name].needs if need not in wanted]
        return replace(self, rows=tuple(row for row in self.rows if row.name in wanted))

    def with_arguments(self, changes: Arguments) -> "Table":
        """Return the table with other values of arguments, in the rows that have them. Raises UserError if none has."""
        known = sorted({key for row in self.rows for key in row.arguments})
        for key in changes:
            if key not in known:
                hint = suggestion(key, known) or f"use {', '.join(known)}"
                raise UserError(f"'{key}' is no argument of table '{self.name}': {hint}")
        rows = [
            replace(row, arguments={key: changes.get(key, value) for key, value in row.arguments.items()})
            for row in self.rows
        ]
        return replace(self, rows=tuple(rows))
