import base64
import csv
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from qdiff.evaluation.report import csv_text, markdown_text, text, write_comparison, write_report
from qdiff.evaluation.results import json_text
from tests.qdiff.evaluation.results import ALL_TITLES, CELLS, LINES, ONE, RESULTS, SHOWN, TITLES, TWO, with_images

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
def sections(images):
    return [with_images(section, images) for section in (ONE, TWO)]


@pytest.fixture
def written(sections, tmp_path):
    settings = {"versions": "torch <2>", "machine": "abacus"}
    return {p.name: p for p in write_report(tmp_path / "out", "Four & eight", sections, settings)}


def test_every_file_is_written(written, sections):
    assert set(written) == {"results.json", "table.txt", "table.md", "table.csv", "report.html"}
    settings = {"versions": "torch <2>", "machine": "abacus"}
    content = {name: path.read_text(encoding="utf-8") for name, path in written.items()}
    assert content["results.json"] == json_text(sections, settings) + "\n"
    assert content["table.txt"] == "\n".join(map(text, sections))
    assert content["table.md"] == "\n".join(map(markdown_text, sections))
    assert content["table.csv"] == csv_text(sections)


def test_methods_side_by_side(sections, tmp_path):
    path = write_comparison(tmp_path, sections[0])
    assert path.name == "comparison_one.png"
    assert Image.open(path).size == (18 + 8 + 18 + 2 * 8, 36 + 12 + 8)


def test_the_text_has_what_is_no_reproduction_first_and_aligned_tables():
    title, first, second, empty, *lines = text(TWO).splitlines()
    assert (title, first) == ("Another model", "This is no reproduction: of <64> images.")
    assert "meets its published value" in second and empty == ""
    wide, long = lines[:3], lines[4:8]
    for column in range(1, len(TITLES) - 1):
        assert len({line.index(row[column]) for line, row in zip(wide, [TITLES, *CELLS])}) == 1
    for line, cells in zip(long, LINES):
        assert line.split() == " ".join(cells).split()
    assert lines[-3:] == [f"note: {note}" for note in TWO.notes]
    assert "published" not in text(ONE), "there is nothing to compare with"


def tables(markdown: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in markdown.splitlines() if line.startswith("|")]


def test_markdown():
    assert tables(markdown_text(ONE)) == [TITLES, ["---"] * len(TITLES), *CELLS]
    rows = tables(markdown_text(TWO))
    assert rows[0] == ALL_TITLES and rows[4:] == [LINES[0], ["---"] * 5, *LINES[1:]]
    lines = markdown_text(TWO).splitlines()
    assert {SHOWN, "**This is no reproduction: of <64> images.**", "`python make`"} <= {*lines}
    assert any(line.startswith("- PSNR to FP [dB]: peak signal-to-noise") for line in lines)
    assert "Columns" not in markdown_text(ONE)
    piped = replace(ONE, results=[replace(RESULTS[0], method="a | b")])
    assert "| a \\| b |" in markdown_text(piped)


def test_csv_has_all_digits():
    rows = list(csv.reader(csv_text([ONE, TWO]).splitlines()))
    statement = "This is no reproduction: of <64> images."
    assert rows[0] == ["table", "method", "metric", "published", "obtained", "difference", "statement"]
    assert ["one", "<W4> & A8", "PSNR to FP [dB]", "", "23.456", "", ""] in rows
    assert ["two", "<W4> & A8", "PSNR to FP [dB]", "23.0", "23.456", repr(23.456 - 23), statement] in rows
    assert ["two", "<W4> & A8", "is_", "3.0", "", "", statement] in rows
    assert ["one", "FP", "PSNR to FP [dB]", "", "inf", "", ""] in rows


def test_the_page_shows_plots_with_their_captions(sections, images, tmp_path):
    path, (image, *_) = tmp_path / "a.svg", images.values()
    path.write_text("<svg/>")
    section = replace(sections[0], plots={"Quality & size": path, "Differences": image})
    *_, html = write_report(tmp_path / "out", "title", [section], {})
    page = Page(html.read_text(encoding="utf-8"))
    assert page.texts["figcaption"] == [*images, "Quality & size", "Differences"]
    svg, png = page.addresses[-2:]
    assert base64.b64decode(svg.removeprefix("data:image/svg+xml;base64,")) == b"<svg/>"
    assert base64.b64decode(png.removeprefix("data:image/png;base64,")) == image.read_bytes()


def test_page_shows_everything_and_needs_nothing(written, images):
    html = written["report.html"].read_text(encoding="utf-8")
    page = Page(html)
    embedded = [base64.b64decode(address.removeprefix("data:image/png;base64,")) for address in page.addresses]
    assert embedded == [path.read_bytes() for path in images.values()] * 2
    assert "http" not in html and "url(" not in html and "@import" not in html
    assert page.texts["figcaption"] == list(images) * 2
    commands = [result.command for result in RESULTS]
    assert page.texts["pre"] == [*commands, "python make", *commands]
    assert page.texts["th"] == TITLES + ALL_TITLES + LINES[0]
    shown = [cell for row in CELLS for cell in row]
    assert page.texts["td"][: len(shown)] == shown
    assert page.texts["td"][-3 * 5 :] == [cell for row in LINES[1:] for cell in row]
    assert dict(zip(page.texts["dt"], page.texts["dd"])) == {"versions": "torch <2>", "machine": "abacus"}
    assert page.texts["title"] == page.texts["h1"] == ["Four & eight"]
    assert TWO.statements == [text for text in page.texts["strong"] if text in TWO.statements]
    assert "simulated" in " ".join(page.texts["p"])
    assert [text for text in page.texts["p"] if "Columns" in text] == [SHOWN]
    assert "of few images" in page.texts["li"]
    assert "image-rendering: pixelated" in html
    assert 'name="viewport"' in html
