import base64
import json
import math
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from qdiff.errors import UserError
from qdiff.evaluation.report import COLUMNS, Result, Section, comparison, markdown_table, text_table, write_report

RESULTS = [
    Result("FP", "python sample.py -l 'a b'", math.inf, 0.0, 1.234, 10_944_396, 10_944_396),
    Result("<W4> & A8", "python sample.py --ptq -l <x>", 23.456, 7.891, 12.345, 1_500_000, 10_944_396),
]
GUIDED = [replace(result, recognised=share) for result, share in zip(RESULTS, (1.0, 0.25))]
CELLS = [
    ["FP", "∞", "0.00", "1.23", "10.94 MB (1.000 x)"],
    ["<W4> & A8", "23.46", "7.89", "12.35", "1.50 MB (0.137 x)"],
]
ALL_TITLES = [column.title for column in COLUMNS]
TITLES = [title for title in ALL_TITLES if title != "category recognised"]
ONE = Section("one", "A model", RESULTS, {})
TWO = Section("two", "Another model", GUIDED, {}, shown=("red <apple>", "pear"))
SHOWN = "Columns of images, from the left: red <apple>, pear."
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Text of the elements that matter, every address, and whether the tags fit together."""

    def __init__(self, html: str):
        super().__init__()
        self.stack, self.addresses, self.texts = [], [], {}
        self.feed(html)
        assert not self.stack

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "style")]
        if tag not in VOID:
            self.stack.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack:
            self.texts[self.stack[-1]][-1] += data


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    found = {result.method: tmp_path / f"{i}.png" for i, result in enumerate(RESULTS)}
    for path in found.values():
        Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)).save(path)
    return found


@pytest.fixture
def written(images, tmp_path):
    settings = {"versions": "torch <2>", "machine": "abacus"}
    sections = [replace(ONE, images=images), replace(TWO, images=images)]
    return {p.name: p for p in write_report(tmp_path / "out", "Four & eight", sections, settings)}


def test_text_table_is_aligned():
    lines = text_table(ONE).splitlines()
    assert len(lines) == 3
    for column in range(len(TITLES)):
        starts = {line.index(cell) for line, cell in zip(lines, [TITLES[column], *(row[column] for row in CELLS)])}
        assert len(starts) == 1


def test_markdown_table():
    rows = [line.strip("| ").split(" | ") for line in markdown_table(ONE).splitlines() if line.startswith("|")]
    assert rows == [TITLES, ["---"] * len(TITLES), *CELLS]
    assert "not FID" in markdown_table(ONE)


def test_what_columns_show_is_named_where_it_is_known(written):
    assert SHOWN in markdown_table(TWO).splitlines()
    assert "Columns" not in markdown_table(ONE)
    assert written["table.md"].read_text(encoding="utf-8").count(SHOWN) == 1


def test_categories_have_a_column_where_there_are_some():
    assert [column.title for column in TWO.columns] == ALL_TITLES
    lines = text_table(TWO).splitlines()
    assert " 100% " in lines[1] and " 25% " in lines[2]


def test_results_are_strict_json(written):
    def refuse(constant):
        raise AssertionError(constant)

    found = json.loads(written["results.json"].read_text(encoding="utf-8"), parse_constant=refuse)
    assert found["settings"]["machine"] == "abacus"
    assert [row["psnr"] for row in found["results"]["one"]] == [None, 23.456]
    assert [row["recognised"] for row in found["results"]["two"]] == [1.0, 0.25]
    assert found["results"]["one"][1]["command"] == RESULTS[1].command


def test_page_shows_everything_and_needs_nothing(written, images):
    html = written["report.html"].read_text(encoding="utf-8")
    page = Page(html)
    embedded = [base64.b64decode(address.removeprefix("data:image/png;base64,")) for address in page.addresses]
    assert embedded == [path.read_bytes() for path in images.values()] * 2
    assert "http" not in html and "url(" not in html and "@import" not in html
    assert page.texts["figcaption"] == list(images) * 2
    assert page.texts["pre"] == [result.command for result in RESULTS] * 2
    assert page.texts["th"] == TITLES + ALL_TITLES
    assert page.texts["td"][: 2 * len(TITLES)] == [cell for row in CELLS for cell in row]
    assert dict(zip(page.texts["dt"], page.texts["dd"])) == {"versions": "torch <2>", "machine": "abacus"}
    assert page.texts["title"] == page.texts["h1"] == ["Four & eight"]
    assert "simulated" in " ".join(page.texts["p"])
    assert [text for text in page.texts["p"] if "Columns" in text] == [SHOWN]
    assert "image-rendering: pixelated" in html
    assert 'name="viewport"' in html


def test_comparison_holds_every_image_enlarged(written, images):
    sheet = np.asarray(Image.open(written["comparison_one.png"]))
    for i, path in enumerate(images.values()):
        enlarged = np.asarray(Image.open(path)).repeat(2, 0).repeat(2, 1)
        top, left = sheet.shape[0] - 8 - 12, 8 + i * (18 + 8)
        np.testing.assert_array_equal(sheet[top : top + 12, left : left + 18], enlarged)
    assert (sheet[:8] == 255).all() and (sheet[-8:] == 255).all()
    assert (sheet[8:-20] < 128).any(), "names stand above"


def test_wide_images_stand_one_below_the_other(tmp_path):
    drawn = {name: np.random.default_rng(i).integers(0, 256, (4, 9, 3), np.uint8) for i, name in enumerate("ab")}
    for name, pixels in drawn.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    sheet = np.asarray(comparison({name: tmp_path / f"{name}.png" for name in drawn}))
    assert sheet.shape == (2 * (36 + 8) + 8, 18 + 2 * 8, 3)
    for i, pixels in enumerate(drawn.values()):
        top = 36 + i * (36 + 8)
        np.testing.assert_array_equal(sheet[top : top + 8, 8:26], pixels.repeat(2, 0).repeat(2, 1))
        assert (sheet[top - 36 : top] < 128).any(), "a name stands above"


def test_grey_images_are_shown_too(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (6, 9), np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    sheet = np.asarray(comparison({"a": tmp_path / "a.png"}))
    enlarged = grey.repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(sheet[-20:-8, 8:26], np.stack([enlarged] * 3, 2))


def test_a_damaged_image_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"a\.png' is not a PNG: move or delete it"):
        comparison({"a": tmp_path / "a.png"})
