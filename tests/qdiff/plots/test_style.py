import ast
import sys
from itertools import combinations
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from qdiff.errors import UserError
from qdiff.plots.style import COLOURS, SHADES, line_style, shortened, spaced, styled
from qdiff.plots.style import drawing as draw
from tests.test_imports import imports

ROOT = Path(__file__).parents[3]


def lightness(colour: str | tuple[float, ...]) -> float:
    """L* of CIE 1976, 0 (black) to 100 (white): what remains in black and white."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    y = float(np.dot([0.2126, 0.7152, 0.0722], linear))
    return 116 * y ** (1 / 3) - 16 if y > 0.008856 else 903.3 * y


def test_the_users_settings_neither_matter_nor_change():
    with matplotlib.rc_context({"font.size": 33, "axes.facecolor": "red"}):
        with draw(2) as figure:
            axes = figure.subplots()
            assert axes.get_facecolor() == (1, 1, 1, 1) and axes.xaxis.label.get_fontsize() < 12
        assert matplotlib.rcParams["font.size"] == 33 and matplotlib.rcParams["axes.facecolor"] == "red"


def test_shades_rise_in_lightness():
    levels = [lightness(tuple(matplotlib.colormaps[SHADES](x)[:3])) for x in np.linspace(0, 1, 30)]
    assert (np.diff(levels) > 0).all() and levels[-1] - levels[0] > 70


def test_lines_are_told_apart_without_colour():
    styles = [line_style(i) for i in range(28)]
    for a, b in combinations(styles, 2):
        assert (a["marker"], a["linestyle"]) != (b["marker"], b["linestyle"])
    assert len(set(COLOURS)) == 7 and all(lightness(colour) < 75 for colour in COLOURS), "visible on white"


def test_names_and_indices_are_cut_to_fit():
    assert shortened("abcdef", 6) == "abcdef" and shortened("abcdefg", 6) == "...efg"
    assert list(spaced(5, 9)) == [0, 1, 2, 3, 4] and list(spaced(20, 9)) == [0, 3, 6, 9, 12, 15, 18]
    assert all(len(spaced(count, 9)) <= 9 for count in range(1, 1100))


def test_without_matplotlib_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with (
        pytest.raises(UserError, match=r"plots need a package \(.*matplotlib.*\): pip install 'qdiff\[plot\]'"),
        styled(),
    ):
        pass


def test_matplotlib_is_loaded_when_something_is_drawn_and_pyplot_never():
    paths = sorted((ROOT / "qdiff" / "plots").glob("*.py"))
    assert len(paths) > 8
    for path in paths:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert not [name for name in imports(tree) if "pyplot" in name]
        at_once = (
            name for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom) for name in imports(node)
        )
        assert not [name for name in at_once if name.startswith("matplotlib")]
