from dataclasses import replace

import torch
from PIL import Image

from qdiff.analysis.images import ComparedImages
from qdiff.plots.report import write_plots
from tests.qdiff.evaluation.results import ONE, RESULTS


def test_every_section_has_its_tradeoff_and_its_differences(tmp_path):
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    plots = write_plots(tmp_path / "out", ONE, ComparedImages(images, {"<W4> & A8": images + 1}))
    assert {path.name for path in plots.values()} == {"tradeoff_one.svg", "differences_one.png"}
    svg = (tmp_path / "out" / "tradeoff_one.svg").read_text(encoding="utf-8")
    assert "<!-- A model -->" in svg and "<!-- &lt;W4&gt; &amp; A8 -->" in svg
    assert Image.open(tmp_path / "out" / "differences_one.png").width == 936


def test_full_precision_alone_has_no_plots(tmp_path):
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    assert write_plots(tmp_path, replace(ONE, results=RESULTS[:1]), ComparedImages(images, {})) == {}
    assert list(tmp_path.iterdir()) == []


def test_equal_images_have_no_place_in_a_plot_of_quality(tmp_path):
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    same = replace(ONE, results=[RESULTS[0], replace(RESULTS[0], name="w8", method="W8")])
    assert [*write_plots(tmp_path, same, ComparedImages(images, {"W8": images}))] == ["Differences to full precision"]
