"""A report in files: tables, comparison images, and one HTML page."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

from qdiff.evaluation.comparison import comparison
from qdiff.evaluation.results import COLUMNS_SHOWN, Section, json_text, markdown_table
from qdiff.files.atomic import replacing


def html_page(title: str, sections: Sequence[Section], settings: Mapping[str, str]) -> str:
    """Return a self-contained HTML page.

    Args:
        title: of the page.
        sections: one per model.
        settings: name -> value, what is needed to reproduce the numbers besides the commands.
    """
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("qdiff.evaluation", "."), autoescape=True)
    environment.filters["data_uri"] = data_uri
    return environment.get_template("report.html").render(
        title=title, sections=sections, settings=settings, columns=COLUMNS_SHOWN
    )


def write_report(folder: Path, title: str, sections: Sequence[Section], settings: Mapping[str, str]) -> list[Path]:
    """Write a comparison image per section, `results.json`, `table.md` and `report.html`.

    Args:
        folder: created if missing; each file appears whole or not at all.
        title, sections, settings: as for `html_page`.

    Returns:
        paths of the files.

    Raises:
        UserError: an overview image cannot be read.
    """
    texts = {
        "results.json": json_text(sections, settings) + "\n",
        "table.md": "\n".join(map(markdown_table, sections)),
        "report.html": html_page(title, sections, settings),
    }
    for section in sections:
        with replacing(folder / section.sheet) as partial:
            comparison(section.images).save(partial, format="PNG")
    for name, text in texts.items():
        with replacing(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")
    return [folder / name for name in [*(section.sheet for section in sections), *texts]]


def data_uri(path: Path) -> str:
    """Return a PNG or SVG as an address that holds it. Raises OSError if it cannot be read."""
    kind = {".png": "image/png", ".svg": "image/svg+xml"}[path.suffix]
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
