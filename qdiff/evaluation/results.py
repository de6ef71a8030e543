"""Results of several methods on one model, and their tables."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from qdiff.evaluation.measures import Metric
from qdiff.files.tables import aligned, markdown

COLUMNS_SHOWN = "Columns of images, from the left:"


@dataclass(frozen=True)
class Result:
    """A row of a comparison: one method.

    Attributes:
        method: its name.
        command: the command line that made its images.
        values: key of a metric -> value; None where it does not apply. See `qdiff.evaluation.measures.measured`.
        file_bytes: size of the network's file.
        fp32_bytes: size of the network's parameters in float32.
    """

    method: str
    command: str
    values: Mapping[str, float | None]
    file_bytes: int
    fp32_bytes: int


class Column(NamedTuple):
    """A column of a table: its title, its meaning and its cell for a row."""

    title: str
    meaning: str
    cell: Callable[[Result], str]


METHOD = Column("method", "", lambda r: r.method)
FILE = Column(
    "file",
    "size of the network's file, and its ratio to the network in 32-bit floating point",
    lambda r: f"{r.file_bytes / 1e6:.2f} MB ({r.file_bytes / r.fp32_bytes:.3f} x)",
)


@dataclass(frozen=True)
class Section:
    """A comparison of methods on one model.

    Attributes:
        name: for file names.
        title: heading.
        metrics: in the order of the columns.
        results: one row per method; the first one is in full precision.
        images: method -> its overview PNG.
        shown: meanings of each overview's columns, from the left; empty if they are obvious.
        plots: caption -> plot, PNG or SVG.
    """

    name: str
    title: str
    metrics: Sequence[Metric]
    results: Sequence[Result]
    images: Mapping[str, Path]
    shown: Sequence[str] = ()
    plots: Mapping[str, Path] = field(default_factory=dict)

    @property
    def columns(self) -> list[Column]:
        """Method, the metrics that apply to the first row, and file."""
        applicable = [m for m in self.metrics if self.results[0].values[m.key] is not None]
        return [METHOD, *map(_column, applicable), FILE]

    @property
    def sheet(self) -> str:
        """File name of the image that shows all methods."""
        return f"comparison_{self.name}.png"


def text_table(section: Section) -> str:
    """Return the table for a terminal."""
    return aligned([[c.title for c in section.columns], *_cells(section)])


def markdown_table(section: Section) -> str:
    """Return the table in Markdown, followed by the meaning of its columns."""
    table = markdown([c.title for c in section.columns], _cells(section))
    meanings = "\n".join(f"- {c.title}: {c.meaning}." for c in section.columns if c.meaning)
    shown = f"\n{COLUMNS_SHOWN} {', '.join(section.shown)}.\n" if section.shown else ""
    return f"## {section.title}\n\n{table}\n\n{meanings}\n{shown}"


def json_text(sections: Sequence[Section], settings: Mapping[str, str]) -> str:
    """Return results and settings as strict JSON.

    A row has `method`, `command`, the key of every metric, and `size` and `fp32_size` in bytes. Null stands for an
    infinite value, such as the PSNR of equal images, and for a metric that does not apply.
    """
    rows = {section.name: [_json_row(result) for result in section.results] for section in sections}
    return json.dumps({"settings": dict(settings), "results": rows}, indent=2, ensure_ascii=False, allow_nan=False)


def _json_row(result: Result) -> dict[str, object]:
    values = {key: None if value == math.inf else value for key, value in result.values.items()}
    sizes = {"size": result.file_bytes, "fp32_size": result.fp32_bytes}
    return {"method": result.method, "command": result.command, **values, **sizes}


def _column(metric: Metric) -> Column:
    return Column(metric.title, metric.meaning, lambda result: metric.cell(result.values[metric.key]))


def _cells(section: Section) -> list[list[str]]:
    columns = section.columns
    return [[c.cell(result) for c in columns] for result in section.results]
