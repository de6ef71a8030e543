#!/usr/bin/env python
"""Adopt what `make demo-full` obtained as the stated values of the bundled models' tables.

    make demo-full
    python benchmarks/bundled_tables.py demo/full

Writes `published` in the presets, the tables of docs/measurements.md, and the image of all methods beside each model,
and prints which files changed. Values go with the machine that they were obtained on.
"""

import argparse
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from qdiff.config.presets import load_table

ROOT = Path(__file__).resolve().parents[1]
PRESETS, DOCUMENT = ROOT / "configs/quant", ROOT / "docs/measurements.md"
PUBLISHED = re.compile(r"^published:\n(  .*\n)*", re.MULTILINE)
TABLE = re.compile(r"(^\|.*\n)+", re.MULTILINE)
DIGITS = 2  # after the point


def stated(row: dict) -> str:
    """Return the section `published` for a row of `results.json`; not of values that full precision has by itself."""
    values = {found["metric"]: found["value"] for found in row["evaluation"]["rows"] if found["value"]}
    return "published:\n" + "".join(f"  {key}: {round(x, DIGITS):g}\n" for key, x in values.items()) if values else ""


def adopt(folder: Path, name: str, rows: list[dict]) -> Iterator[Path]:
    """Write the values of a table; yield the files."""
    for row in rows:
        (path,) = PRESETS.glob(f"{name}/*_{row['name']}.yaml")
        text = PUBLISHED.sub("", path.read_text(encoding="utf-8"))
        path.write_text(text.replace("arguments:", stated(row) + "arguments:", 1), encoding="utf-8")
        yield path
    model = Path(load_table(PRESETS, name, Path(), folder).weights.file).parent
    table = TABLE.search((folder / name / "table.md").read_text(encoding="utf-8"))
    before, image, after = DOCUMENT.read_text(encoding="utf-8").partition(f"](../{model}/demo.png)")
    assert table and image, "a report has a table, and the document shows every bundled model"
    DOCUMENT.write_text(before + image + TABLE.sub(lambda _: table[0], after, count=1), encoding="utf-8")
    yield DOCUMENT
    shutil.copyfile(folder / name / f"comparison_{name}.png", ROOT / model / "demo.png")
    yield ROOT / model / "demo.png"


def main() -> None:
    """Adopt all tables of a report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="--out of the tables, without deviations")
    folder = parser.parse_args().folder
    content = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    for name, table in content["tables"].items():
        if table["deviations"]:
            parser.error(f"table {name} is not as its presets state it: {'; '.join(table['deviations'])}")
        if len(content["results"][name]) < len(load_table(PRESETS, name, Path(), folder).rows):
            parser.error(f"table {name} lacks rows: make it without --rows")
    for name, rows in content["results"].items():
        for path in adopt(folder, name, rows):
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
