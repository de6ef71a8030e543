"""Results of several methods on the same seeds: tables, a picture that shows all of them, and one HTML page."""

import base64
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from qdiff.errors import UserError
from qdiff.files.atomic import replacing

ENLARGED = 2  # screen pixels a side for a pixel of a picture, in the comparison
MARGIN = 8


@dataclass(frozen=True)
class Result:
    """One method and how its pictures compare with those in full precision.

    Attributes:
        method: its name.
        command: the command line that made the pictures.
        psnr: dB, infinite for equal pictures; see `qdiff.evaluate.psnr`.
        mae: mean absolute error in levels of 8 bits.
        frechet: Frechet distance to the training pictures on the features of a small classifier.
        size: bytes of the network's file.
        fp32_size: bytes of the network in float32.
    """

    method: str
    command: str
    psnr: float
    mae: float
    frechet: float
    size: int
    fp32_size: int


class Column(NamedTuple):
    """A column of the table: its title, what it means, and its cell for a result."""

    title: str
    meaning: str
    cell: Callable[[Result], str]


COLUMNS = (
    Column("method", "", lambda r: r.method),
    Column(
        "PSNR to FP [dB]",
        "peak signal-to-noise ratio to the FP picture of the same seed, mean over the pictures; higher is closer",
        lambda r: "∞" if math.isinf(r.psnr) else f"{r.psnr:.2f}",
    ),
    Column(
        "distance to FP",
        "mean absolute difference to the FP picture of the same seed, in levels 0..255; lower is closer",
        lambda r: f"{r.mae:.2f}",
    ),
    Column(
        "FD on emoji-classifier features (not FID)",
        "Fréchet distance to the training pictures on the features of a small classifier of such pictures; it "
        "compares the rows of this table and nothing else, least of all the FID of a paper",
        lambda r: f"{r.frechet:.2f}",
    ),
    Column(
        "file",
        "size of the network's file, and its share of the network in 32-bit floating point",
        lambda r: f"{r.size / 1e6:.2f} MB ({r.size / r.fp32_size:.3f} x)",
    ),
)


def read_pictures(paths: Sequence[Path]) -> Tensor:
    """PNGs of equal size as uint8 (N, 3, H, W). Raises UserError if one is missing or damaged."""
    return torch.stack([torch.from_numpy(np.array(_read(path))).permute(2, 0, 1) for path in paths])


def text_table(results: Sequence[Result]) -> str:
    """The table for a terminal."""
    rows = [[c.title for c in COLUMNS], *([c.cell(r) for c in COLUMNS] for r in results)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def markdown_table(results: Sequence[Result]) -> str:
    """The table in Markdown, and below it what the columns mean."""
    rows = [[c.title for c in COLUMNS], ["---"] * len(COLUMNS), *([c.cell(r) for c in COLUMNS] for r in results)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    meanings = "\n".join(f"- {c.title}: {c.meaning}." for c in COLUMNS if c.meaning)
    return f"{table}\n\n{meanings}\n"


def json_text(results: Sequence[Result], settings: Mapping[str, str]) -> str:
    """Results and settings for other programs; null stands for an infinite PSNR."""
    rows = [{k: None if v == math.inf else v for k, v in asdict(r).items()} for r in results]
    return json.dumps({"settings": dict(settings), "results": rows}, indent=2, ensure_ascii=False, allow_nan=False)


def comparison(pictures: Mapping[str, Path]) -> Image.Image:
    """Pictures of equal size side by side, enlarged without smoothing, each under its name."""
    font = ImageFont.load_default(20)
    title = 2 * MARGIN + 20
    loaded = {name: _enlarged(path) for name, path in pictures.items()}
    width = sum(picture.width + MARGIN for picture in loaded.values()) + MARGIN
    sheet = Image.new("RGB", (width, title + max(p.height for p in loaded.values()) + MARGIN), "white")
    draw, x = ImageDraw.Draw(sheet), MARGIN
    for name, picture in loaded.items():
        draw.text((x, MARGIN), name, "black", font)
        sheet.paste(picture, (x, title))
        x += picture.width + MARGIN
    return sheet


def html_page(title: str, results: Sequence[Result], pictures: Mapping[str, Path], settings: Mapping[str, str]) -> str:
    """One page that needs no other file and no network.

    Args:
        title: of the page.
        results: a row each, the first one in full precision.
        pictures: method -> its PNG.
        settings: what else is needed to get the same numbers, name -> value.
    """
    from jinja2 import Environment, PackageLoader

    template = Environment(loader=PackageLoader("qdiff", "."), autoescape=True).get_template("report.html")
    return template.render(
        title=title,
        columns=COLUMNS,
        results=results,
        pictures={name: _data_uri(path) for name, path in pictures.items()},
        settings=settings,
    )


def write_report(
    folder: Path, title: str, results: Sequence[Result], pictures: Mapping[str, Path], settings: Mapping[str, str]
) -> list[Path]:
    """Write `comparison.png`, `results.json`, `table.md` and `report.html`, each whole or not at all.

    Args:
        folder: where to.
        title, results, pictures, settings: as for `html_page`.

    Returns:
        the four files.
    """
    texts = {
        "results.json": json_text(results, settings) + "\n",
        "table.md": markdown_table(results),
        "report.html": html_page(title, results, pictures, settings),
    }
    sheet = folder / "comparison.png"
    with replacing(sheet) as partial:
        comparison(pictures).save(partial, format="PNG")
    for name, text in texts.items():
        with replacing(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")
    return [sheet, *(folder / name for name in texts)]


def _read(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, SyntaxError) as e:  # what Pillow raises for damaged files
        raise UserError(f"'{path}' is not a whole picture ({e}): delete it and run the same command again") from e


def _enlarged(path: Path) -> Image.Image:
    picture = _read(path)
    return picture.resize((ENLARGED * picture.width, ENLARGED * picture.height), Image.Resampling.NEAREST)


def _data_uri(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
