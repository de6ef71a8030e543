import numpy as np
import pytest
from PIL import Image

from qdiff.errors import UserError
from qdiff.evaluation.comparison import comparison


def save(folder, pixels: dict) -> dict:
    for name, values in pixels.items():
        Image.fromarray(values).save(folder / f"{name}.png")
    return {name: folder / f"{name}.png" for name in pixels}


def test_comparison_holds_every_image_enlarged(tmp_path):
    pixels = {name: np.random.default_rng(i).integers(0, 256, (6, 9, 3), np.uint8) for i, name in enumerate("ab")}
    sheet = np.asarray(comparison(save(tmp_path, pixels)))
    for i, values in enumerate(pixels.values()):
        top, left = sheet.shape[0] - 8 - 12, 8 + i * (18 + 8)
        np.testing.assert_array_equal(sheet[top : top + 12, left : left + 18], values.repeat(2, 0).repeat(2, 1))
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
