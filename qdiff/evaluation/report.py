"""Results of several methods on the same seeds: tables, an image that shows all of them, and one HTML page."""

import base64
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from qdiff.files.atomic import replacing
from qdiff.files.images import read_images, to_pillow

ENLARGED = 2  # screen pixels a side for a pixel of an image, in the comparison
WIDE = 2  # an image is wide whose width is more than so many times its height
MARGIN = 8
COLUMNS_SHOWN = "Columns of images, from the left:"


@dataclass(frozen=True)
class Result:
    """One method and how its images compare with those in full precision.

    Attributes:
        method: its name.
        command: the command line that made the images.
        psnr: dB, infinite for equal images; see `qdiff.evaluation.metrics.psnr`.
        mae: mean absolute error in levels of 8 bits.
        frechet: Frechet distance to the training images on the features of a small classifier.
        size: bytes of the network's file.
        fp32_size: bytes of the network in float32.
        recognised: share of the images whose category the classifier names right; None without categories.
    """

    method: str
    command: str
    psnr: float
    mae: float
    frechet: float
    size: int
    fp32_size: int
    recognised: float | None = None


@dataclass(frozen=True)
class Section:
    """The methods that are compared on one model.

    Attributes:
        name: of its files.
        title: of its heading.
        results: a row each, the first one in full precision.
        images: method -> its PNG.
        shown: what the columns of each PNG show, from the left; nothing where that says itself.
    """

    name: str
    title: str
    results: Sequence[Result]
    images: Mapping[str, Path]
    shown: Sequence[str] = ()

    @property
    def columns(self) -> list["Column"]:
        """Those of `COLUMNS` that apply."""
        return [c for c in COLUMNS if c.applies(self.results[0])]

    @property
    def sheet(self) -> str:
        """Name of the image that shows all methods."""
        return f"comparison_{self.name}.png"


class Column(NamedTuple):
    """A column of the table: its title, what it means, its cell for a result, and whether results have it at all."""

    title: str
    meaning: str
    cell: Callable[[Result], str]
    applies: Callable[[Result], bool] = lambda result: True


COLUMNS = (
    Column("method", "", lambda r: r.method),
    Column(
        "PSNR to FP [dB]",
        "peak signal-to-noise ratio to the FP image of the same seed, mean over the images; higher is closer",
        lambda r: "∞" if math.isinf(r.psnr) else f"{r.psnr:.2f}",
    ),
    Column(
        "distance to FP",
        "mean absolute difference to the FP image of the same seed, in levels 0..255; lower is closer",
        lambda r: f"{r.mae:.2f}",
    ),
    Column(
        "FD on emoji-classifier features (not FID)",
        "Fréchet distance to the training images on the features of a small classifier of such images; it "
        "compares the rows of this table and nothing else, least of all the FID of a paper",
        lambda r: f"{r.frechet:.2f}",
    ),
    Column(
        "category recognised",
        "share of the images whose category that classifier names right",
        lambda r: f"{r.recognised:.0%}",
        lambda r: r.recognised is not None,
    ),
    Column(
        "file",
        "size of the network's file, and its share of the network in 32-bit floating point",
        lambda r: f"{r.size / 1e6:.2f} MB ({r.size / r.fp32_size:.3f} x)",
    ),
)


def text_table(section: Section) -> str:
    """The table for a terminal."""
    rows = _cells(section)
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def markdown_table(section: Section) -> str:
    """The table in Markdown, and below it what the columns mean."""
    titles, *rows = _cells(section)
    table = "\n".join(f"| {' | '.join(row)} |" for row in [titles, ["---"] * len(titles), *rows])
    meanings = "\n".join(f"- {c.title}: {c.meaning}." for c in section.columns if c.meaning)
    shown = f"\n{COLUMNS_SHOWN} {', '.join(section.shown)}.\n" if section.shown else ""
    return f"## {section.title}\n\n{table}\n\n{meanings}\n{shown}"


def _cells(section: Section) -> list[list[str]]:
    return [[c.title for c in section.columns], *([c.cell(r) for c in section.columns] for r in section.results)]


def json_text(sections: Sequence[Section], settings: Mapping[str, str]) -> str:
    """Results and settings for other programs; null stands for an infinite PSNR and for what does not apply."""
    rows = {
        section.name: [{k: None if v == math.inf else v for k, v in asdict(r).items()} for r in section.results]
        for section in sections
    }
    return json.dumps({"settings": dict(settings), "results": rows}, indent=2, ensure_ascii=False, allow_nan=False)


def comparison(images: Mapping[str, Path]) -> Image.Image:
    """Images of equal size side by side (wide ones one below the other), enlarged without smoothing, with names."""
    font, title = ImageFont.load_default(20), 2 * MARGIN + 20
    loaded = {name: _enlarged(path) for name, path in images.items()}
    width, height = map(max, zip(*(image.size for image in loaded.values())))
    step = (0, title + height) if width > WIDE * height else (width + MARGIN, 0)
    last_x, last_y = (edge * (len(loaded) - 1) for edge in step)
    sheet = Image.new("RGB", (last_x + width + 2 * MARGIN, last_y + title + height + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (name, image) in enumerate(loaded.items()):
        x, y = MARGIN + i * step[0], i * step[1]
        draw.text((x, y + MARGIN), name, "black", font)
        sheet.paste(image, (x, y + title))
    return sheet


def html_page(title: str, sections: Sequence[Section], settings: Mapping[str, str]) -> str:
    """One page that needs no other file and no network.

    Args:
        title: of the page.
        sections: a model each.
        settings: what else is needed to get the same numbers, name -> value.
    """
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("qdiff.evaluation", "."), autoescape=True)
    environment.filters["data_uri"] = _data_uri
    return environment.get_template("report.html").render(
        title=title, sections=sections, settings=settings, columns=COLUMNS_SHOWN
    )


def write_report(folder: Path, title: str, sections: Sequence[Section], settings: Mapping[str, str]) -> list[Path]:
    """Write a sheet with the images of each section, `results.json`, `table.md` and `report.html`.

    Args:
        folder: where to; each file appears whole or not at all.
        title, sections, settings: as for `html_page`.

    Returns:
        the files.
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


def _enlarged(path: Path) -> Image.Image:
    image = to_pillow(read_images([path])[0])
    return image.resize((ENLARGED * image.width, ENLARGED * image.height), Image.Resampling.NEAREST)


def _data_uri(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
