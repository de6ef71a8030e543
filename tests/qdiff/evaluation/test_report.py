import base64
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from qdiff.evaluation.report import write_report
from qdiff.evaluation.results import json_text, markdown_table
from tests.qdiff.evaluation.results import ALL_TITLES, CELLS, ONE, RESULTS, SHOWN, TITLES, TWO

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


def test_every_file_is_written(written):
    assert set(written) == {"comparison_one.png", "comparison_two.png", "results.json", "table.md", "report.html"}
    sections, settings = [ONE, TWO], {"versions": "torch <2>", "machine": "abacus"}
    assert written["results.json"].read_text(encoding="utf-8") == json_text(sections, settings) + "\n"
    assert written["table.md"].read_text(encoding="utf-8") == "\n".join(map(markdown_table, sections))
    assert Image.open(written["comparison_one.png"]).size == (18 + 8 + 18 + 2 * 8, 36 + 12 + 8)


def test_the_page_shows_plots_with_their_captions(images, tmp_path):
    path, (image, *_) = tmp_path / "a.svg", images.values()
    path.write_text("<svg/>")
    section = replace(ONE, images=images, plots={"Quality & size": path, "Differences": image})
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
    assert page.texts["pre"] == [result.command for result in RESULTS] * 2
    assert page.texts["th"] == TITLES + ALL_TITLES
    assert page.texts["td"][: 2 * len(TITLES)] == [cell for row in CELLS for cell in row]
    assert dict(zip(page.texts["dt"], page.texts["dd"])) == {"versions": "torch <2>", "machine": "abacus"}
    assert page.texts["title"] == page.texts["h1"] == ["Four & eight"]
    assert "simulated" in " ".join(page.texts["p"])
    assert [text for text in page.texts["p"] if "Columns" in text] == [SHOWN]
    assert "image-rendering: pixelated" in html
    assert 'name="viewport"' in html
