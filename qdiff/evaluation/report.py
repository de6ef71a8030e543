"""Comparisons as files: text, Markdown, CSV, JSON and one HTML page, and an image of all methods side by side."""

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from qdiff.evaluation.comparison import comparison
from qdiff.evaluation.lines import Line
from qdiff.evaluation.results import Section, json_text
from qdiff.files.atomic import replacing
from qdiff.files.tables import aligned, markdown

LINE_TITLES = ("method", "metric", "published", "obtained", "difference")
COLUMNS_SHOWN = "Columns of images, from the left:"


def wide(section: Section) -> list[list[str]]:
    """Return a table with a row for each method and a column for each metric, its titles first."""
    columns = section.columns
    return [[c.title for c in columns], *([c.cell(result) for c in columns] for result in section.results)]


def long(section: Section) -> list[list[str]]:
    """Return a table with a row for each published value, beside the one obtained, titles first; empty without such."""
    lines = [line.cells for line in section.lines if line.published is not None]
    return [[*LINE_TITLES], *lines] if lines else []


def text(section: Section) -> str:
    """Return a comparison for a terminal."""
    tables = [aligned(table) for table in (wide(section), long(section)) if table]
    notes = "\n".join(f"note: {note}" for note in section.notes)
    return "\n\n".join(filter(None, ["\n".join([section.title, *section.statements]), *tables, notes])) + "\n"


def markdown_text(section: Section) -> str:
    """Return a section in Markdown."""
    meanings = [f"- {c.title}: {c.meaning}." for c in section.columns if c.meaning]
    parts = [
        f"## {section.title}",
        *(f"**{statement}**" for statement in section.statements),
        f"`{section.command}`" if section.command else "",
        _markdown(wide(section)),
        f"{COLUMNS_SHOWN} {', '.join(section.shown)}." if section.shown else "",
        _markdown(long(section)),
        "\n".join([*meanings, *(f"- {note}" for note in section.notes)]),
        "\n".join(f"- {result.method}: `{result.command}`" for result in section.results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def csv_text(sections: Sequence[Section]) -> str:
    """Return the values with all digits, empty where there is none; a last column says what they are not."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["table", *LINE_TITLES, "statement"])
    for section in sections:
        statement = section.statements[0] if section.deviations else ""
        writer.writerows([section.name, *_digits(line), statement] for line in section.lines)
    return out.getvalue()


def html_page(title: str, sections: Sequence[Section], settings: Mapping[str, str]) -> str:
    """Return a self-contained HTML page. Raises OSError if an image cannot be read.

    Args:
        title: of the page.
        sections: one per model.
        settings: name -> value, what is needed to obtain the numbers again besides the commands.
    """
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("qdiff.evaluation", "."), autoescape=True)
    environment.filters |= {"data_uri": data_uri, "wide": wide, "long": long}
    page = environment.get_template("report.html")
    return page.render(title=title, sections=sections, settings=settings, columns=COLUMNS_SHOWN)


def write_report(folder: Path, title: str, sections: Sequence[Section], settings: Mapping[str, str]) -> list[Path]:
    """Write comparisons in every format, each file whole or not at all.

    Args:
        folder: created if missing.
        title, sections, settings: as for `html_page`.

    Returns:
        paths of the files.

    Raises:
        OSError: an image cannot be read, or a file cannot be written.
    """
    texts = {
        "results.json": json_text(sections, settings) + "\n",
        "table.txt": "\n".join(map(text, sections)),
        "table.md": "\n".join(map(markdown_text, sections)),
        "table.csv": csv_text(sections),
        "report.html": html_page(title, sections, settings),
    }
    for name, content in texts.items():
        with replacing(folder / name) as partial:
            partial.write_text(content, encoding="utf-8")
    return [folder / name for name in texts]


def write_comparison(folder: Path, section: Section) -> Path:
    """Write the image of all methods side by side; return its path. Raises UserError if an overview cannot be read."""
    path = folder / f"comparison_{section.name}.png"
    with replacing(path) as partial:
        comparison(section.images).save(partial, format="PNG")
    return path


def data_uri(path: Path) -> str:
    """Return a PNG or SVG as an address that holds it. Raises OSError if it cannot be read."""
    kind = {".png": "image/png", ".svg": "image/svg+xml"}[path.suffix]
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _markdown(table: Sequence[Sequence[str]]) -> str:
    titles, *rows = [[cell.replace("|", "\\|") for cell in row] for row in table] or [[]]
    return markdown(titles, rows) if titles else ""


def _digits(line: Line) -> list[str]:
    numbers = ("" if x is None else repr(x) for x in (line.published, line.obtained, line.difference))
    return [line.method, line.metric, *numbers]
