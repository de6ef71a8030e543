"""Comparisons of methods on one model: their rows and columns, and the results file."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from qdiff.evaluation.lines import Line, lines_of
from qdiff.evaluation.notes import published_notes
from qdiff.evaluation.record import Evaluation

FORMAT, VERSION = "qdiff results", 1
NO_REPRODUCTION = "This is no reproduction"


@dataclass(frozen=True)
class Result:
    """A row of a comparison: one method.

    Attributes:
        name: for file names.
        method: what it is called.
        command: the command line, or call, that made its images.
        evaluation: metrics of its images, with their protocol.
        file_bytes: size of the network's file.
        fp32_bytes: size of the network's parameters in float32.
        grid: overview of its images; None if there is none.
        published: key of a metric -> value that somebody published.
        source: where.
        seconds: what computed the network, such as "simulated" -> seconds of sampling for each image.
    """

    name: str
    method: str
    command: str
    evaluation: Evaluation
    file_bytes: int
    fp32_bytes: int
    grid: Path | None = None
    published: Mapping[str, float] = field(default_factory=dict)
    source: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)


class Column(NamedTuple):
    """A column of a table with a row for each method: its title, its meaning and its cell for a row."""

    title: str
    meaning: str
    cell: Callable[[Result], str]


METHOD = Column("method", "", lambda r: r.method)
FILE = Column(
    "file",
    "size of the network's file, and its ratio to the network in 32-bit floating point",
    lambda r: f"{r.file_bytes / 1e6:.2f} MB ({r.file_bytes / r.fp32_bytes:.3f} x)",
)
SECONDS = Column(
    "s per image",
    "time of sampling, by what computes the network",
    lambda r: ", ".join(f"{seconds:.3f} {name}" for name, seconds in r.seconds.items()) or "-",
)


@dataclass(frozen=True)
class Section:
    """A comparison of methods on one model.

    Attributes:
        name: for file names.
        title: heading.
        results: one row per method; the first one is in full precision.
        command: that makes the comparison.
        deviations: why its values cannot be the published ones; empty if nothing that can be checked differs.
        shown: meanings of each overview's columns, from the left; empty if they are obvious.
        plots: caption -> plot, PNG or SVG.
    """

    name: str
    title: str
    results: Sequence[Result]
    command: str = ""
    deviations: Sequence[str] = ()
    shown: Sequence[str] = ()
    plots: Mapping[str, Path] = field(default_factory=dict)

    @property
    def columns(self) -> list[Column]:
        """Method, the metrics that any row has, file, and time if any row has it."""
        timed = any(result.seconds for result in self.results)
        return [METHOD, *map(self._column, self._metrics()), FILE, *([SECONDS] if timed else [])]

    def _metrics(self) -> list[str]:
        return list(dict.fromkeys(row.metric for result in self.results for row in result.evaluation.rows))

    def _column(self, key: str) -> Column:
        rows = {r.name: row for r in self.results for row in r.evaluation.rows if row.metric == key}
        first = next(iter(rows.values()))
        return Column(first.title, first.meaning, lambda r: rows[r.name].cell if r.name in rows else "-")

    @property
    def lines(self) -> list[Line]:
        """All values, row by row: those published first, in the order of their publication."""
        return [line for r in self.results for line in lines_of(r.method, r.published, r.evaluation)]

    @property
    def statements(self) -> list[str]:
        """What to know before reading the values, the most important first."""
        first = [note for result in self.results[:1] for note in published_notes(result.evaluation)]
        return [*([f"{NO_REPRODUCTION}: {'; '.join(self.deviations)}."] if self.deviations else []), *first]

    @property
    def notes(self) -> list[str]:
        """What else the evaluations say, each once, and where values are published."""
        told = dict.fromkeys(note for result in self.results for note in result.evaluation.notes)
        misses = {note for result in self.results for note in published_notes(result.evaluation)}
        sources = [f"published: {result.method}: {result.source}" for result in self.results if result.source]
        return [note for note in told if note not in misses] + sources

    @property
    def images(self) -> dict[str, Path]:
        """Method -> overview of its images."""
        return {result.method: result.grid for result in self.results if result.grid}


def json_text(sections: Sequence[Section], settings: Mapping[str, str]) -> str:
    """Return results and settings as strict JSON.

    `results` has the rows of each section by its name: `name`, `method`, `command`, the key of every metric with its
    value, `size` and `fp32_size` in bytes, `seconds` by what computes the network, `source` and
    `published`, and `evaluation` with the protocol of the values.
    Null stands for an infinite value, such as the PSNR of equal images. `tables` has the other fields of each section.
    """
    keys = ("title", "command", "deviations")
    content = {
        "format": FORMAT,
        "version": VERSION,
        "settings": dict(settings),
        "tables": {section.name: {key: getattr(section, key) for key in keys} for section in sections},
        "results": {section.name: [_json_row(result) for result in section.results] for section in sections},
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)


def _json_row(result: Result) -> dict[str, object]:
    values = {row.metric: row.value for row in result.evaluation.rows}
    sizes = {"size": result.file_bytes, "fp32_size": result.fp32_bytes, "seconds": dict(result.seconds)}
    publication = {"source": result.source, "published": dict(result.published)}
    head = {"name": result.name, "method": result.method, "command": result.command}
    return {**head, **values, **sizes, **publication, "evaluation": asdict(result.evaluation)}
