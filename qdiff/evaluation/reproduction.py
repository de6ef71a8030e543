"""A table of published values beside those obtained: as text, Markdown, CSV, JSON and HTML."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from qdiff.evaluation.notes import published_notes
from qdiff.evaluation.record import Evaluation
from qdiff.evaluation.report import data_uri
from qdiff.files.atomic import replacing
from qdiff.files.tables import aligned, markdown

FORMAT, VERSION = "qdiff reproduction", 1
TITLES = ("row", "metric", "published", "obtained", "difference")
NO_REPRODUCTION = "This is no reproduction"


@dataclass(frozen=True)
class Reproduced:
    """A row of a table, sampled and evaluated.

    Attributes:
        name: of its preset.
        title: what it is called.
        source: where its values are published.
        command: the command line that made its images.
        published: key of a metric -> value.
        evaluation: what was obtained.
        grid: overview of its images; None if the run wrote none.
    """

    name: str
    title: str
    source: str
    command: str
    published: Mapping[str, float]
    evaluation: Evaluation
    grid: Path | None


@dataclass(frozen=True)
class Line:
    """A value of a table: a line in every format.

    Attributes:
        row: title of the row.
        metric: what the value is called, with its unit.
        published: value; None if none is published.
        obtained: value; None if there is none here, infinity for the PSNR of equal images.
    """

    row: str
    metric: str
    published: float | None
    obtained: float | None

    @property
    def difference(self) -> float | None:
        """Obtained less published; None if one of them is missing."""
        return None if self.published is None or self.obtained is None else self.obtained - self.published

    @property
    def cells(self) -> list[str]:
        """The line as text, numbers with four digits."""
        difference = "-" if self.difference is None else f"{self.difference:+.4g}"
        return [self.row, self.metric, _shown(self.published), _shown(self.obtained), difference]


@dataclass(frozen=True)
class Reproduction:
    """A table.

    Attributes:
        name: of the table.
        title: heading.
        command: that makes the table.
        rows: in order; the first in full precision.
        deviations: why the values cannot be those of the publication; empty if nothing that can be checked differs.
        settings: package versions and the machine.
    """

    name: str
    title: str
    command: str
    rows: Sequence[Reproduced]
    deviations: Sequence[str]
    settings: Mapping[str, str]

    @property
    def lines(self) -> list[Line]:
        """All values, row by row: those published first, in the order of their preset."""
        return [line for row in self.rows for line in _lines(row)]

    @property
    def statements(self) -> list[str]:
        """What to know before reading the values, the most important first."""
        first = [note for row in self.rows[:1] for note in published_notes(row.evaluation)]
        deviations = [f"{NO_REPRODUCTION}: {'; '.join(self.deviations)}."] if self.deviations else []
        return [*deviations, *first]

    @property
    def notes(self) -> list[str]:
        """What else the rows' evaluations say, each once."""
        told = dict.fromkeys(note for row in self.rows for note in row.evaluation.notes)
        misses = {note for row in self.rows for note in published_notes(row.evaluation)}
        return [note for note in told if note not in misses]

    @property
    def sources(self) -> list[str]:
        """Where the values of each row are published."""
        return [f"{row.title}: {row.source}" for row in self.rows]


def text(table: Reproduction) -> str:
    """Return a table for a terminal."""
    cells = aligned([TITLES, *(line.cells for line in table.lines)])
    notes = [f"note: {note}" for note in table.notes]
    return "\n".join([table.title, *table.statements, "", cells, "", *notes, *_published(table), ""])


def markdown_text(table: Reproduction) -> str:
    """Return a section in Markdown."""
    cells = markdown(TITLES, [[cell.replace("|", "\\|") for cell in line.cells] for line in table.lines])
    commands = [f"- {row.title}: `{row.command}`" for row in table.rows]
    parts = [
        f"## {table.title}",
        *(f"**{statement}**" for statement in table.statements),
        f"`{table.command}`",
        cells,
        "\n".join(f"- {note}" for note in (*table.notes, *_published(table))),
        "\n".join(commands),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def csv_text(table: Reproduction) -> str:
    """Return the values with all digits, empty where there is none; a last column says what they are not."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*TITLES, "statement"])
    for line in table.lines:
        numbers = ("" if x is None else repr(x) for x in (line.published, line.obtained, line.difference))
        writer.writerow([line.row, line.metric, *numbers, table.statements[0] if table.deviations else ""])
    return out.getvalue()


def json_text(table: Reproduction) -> str:
    """Return strict JSON: the table's fields, with `format` and `version`; null stands for an infinite value."""
    rows = [{**asdict(row), "grid": row.grid and str(row.grid)} for row in table.rows]
    head = {key: getattr(table, key) for key in ("name", "title", "command", "deviations", "settings")}
    content = {"format": FORMAT, "version": VERSION, **head, "rows": rows}
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def html_text(table: Reproduction) -> str:
    """Return a self-contained HTML page with the images. Raises OSError if one cannot be read."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("qdiff.evaluation", "."), autoescape=True)
    environment.filters["data_uri"] = data_uri
    page = environment.get_template("reproduction.html")
    return page.render(table=table, titles=TITLES, published=_published(table))


FILES = {
    "results.json": json_text,
    "table.txt": text,
    "table.md": markdown_text,
    "table.csv": csv_text,
    "report.html": html_text,
}


def write_reproduction(folder: Path, table: Reproduction) -> list[Path]:
    """Write the table in every format, each file whole or not at all; return their paths. Raises OSError."""
    texts = {folder / name: make(table) for name, make in FILES.items()}
    for path, content in texts.items():
        with replacing(path) as partial:
            partial.write_text(content, encoding="utf-8")
    return list(texts)


def _lines(row: Reproduced) -> Iterator[Line]:
    """Yield the values of a row; published ones that have none here stay, under the name of their key."""
    obtained = {found.metric: found for found in row.evaluation.rows}
    for key in dict.fromkeys([*row.published, *obtained]):
        found = obtained.get(key)
        name = key if found is None else f"{found.name} [{found.unit}]" if found.unit else found.name
        yield Line(row.title, name, row.published.get(key), row.evaluation.values.get(key))


def _published(table: Reproduction) -> list[str]:
    return [f"published: {source}" for source in table.sources]


def _shown(value: float | None) -> str:
    return "-" if value is None else "∞" if value == float("inf") else f"{value:#.4g}"
