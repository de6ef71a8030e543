from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from qdiff.errors import UserError
from qdiff.plots.output import write_figure
from qdiff.plots.style import WIDTH, drawing


@pytest.fixture
def figure():
    with drawing(2) as found:
        found.subplots().plot([1, 2], [3, 4])
    return found


def test_the_extension_decides(figure, tmp_path):
    write_figure(tmp_path / "new" / "a.png", figure)
    write_figure(str(tmp_path / "b.SVG"), figure)
    assert Image.open(tmp_path / "new" / "a.png").size == (round(130 * WIDTH), 260)
    assert ElementTree.parse(tmp_path / "b.SVG").getroot().tag == "{http://www.w3.org/2000/svg}svg"


@pytest.mark.parametrize("name", ["a.svg", "a.png"])
def test_the_same_plot_is_the_same_bytes(name, figure, tmp_path):
    path = tmp_path / name
    write_figure(path, figure)
    before = path.read_bytes()
    path.write_text("something else")
    write_figure(path, figure)
    assert path.read_bytes() == before
    assert b"matplotlib" not in before.lower()[:600]


@pytest.mark.parametrize("name", ["a", "a.jpg", "a.svg.gz", ".svg"])
def test_other_extensions_are_refused(name, figure, tmp_path):
    with pytest.raises(UserError, match=rf"path '.*{name}' ends neither in \.svg nor in \.png: choose one of them"):
        write_figure(tmp_path / name, figure)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_refused(figure, tmp_path):
    (tmp_path / "plot.svg").mkdir()
    with pytest.raises(UserError, match="is a folder: give path the name of a file"):
        write_figure(tmp_path / "plot.svg", figure)


def test_a_file_that_cannot_be_written_stays_as_it_was(figure, tmp_path, monkeypatch):
    path = tmp_path / "a.svg"
    path.write_text("old")
    write = Path.write_bytes

    def full(self, data):
        write(self, data[:9])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"cannot use .*a\.svg' \(No space left on device\)"):
        write_figure(path, figure)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
