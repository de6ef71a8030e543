import numpy as np
import pytest
import torch
from PIL import Image

from qdiff.errors import UserError
from qdiff.files.grid import columns_of, write_grid
from qdiff.files.images import read_image, write_image
from tests.pngs import COLOUR, GREY, random_pixels, write_random


@pytest.mark.parametrize("shape", [COLOUR, GREY])
def test_grid(shape, tmp_path):
    images = write_random(tmp_path, shape, 7)
    write_grid(images, tmp_path / "grid.png", text={"seed": "1"})
    image = Image.open(tmp_path / "grid.png")
    assert (image.mode, image.text) == ("RGB" if shape == COLOUR else "L", {"seed": "1"})
    grid = np.atleast_3d(np.asarray(image))
    assert grid.shape == (2 + 3 * 8, 2 + 3 * 11, shape[0])
    for i, path in enumerate(images):
        top, left = 2 + i // 3 * 8, 2 + i % 3 * 11
        np.testing.assert_array_equal(grid[top : top + 6, left : left + 9], np.atleast_3d(np.asarray(Image.open(path))))
    assert not grid[18:, 13:].any()
    write_grid(images, tmp_path / "row.png", 7)
    assert Image.open(tmp_path / "row.png").size == (2 + 7 * 11, 2 + 8)


@pytest.mark.parametrize("columns", [1, 2, 5])
def test_a_grid_tells_its_columns(columns, tmp_path):
    write_grid(write_random(tmp_path, COLOUR, 5), tmp_path / "grid.png", columns)
    assert columns_of(tmp_path / "grid.png", COLOUR[2]) == columns


@pytest.mark.parametrize("shape", [COLOUR, GREY])
def test_a_grid_of_one_is_the_image(shape, tmp_path):
    write_grid(write_random(tmp_path, shape, 1), tmp_path / "grid.png")
    assert torch.equal(read_image(tmp_path / "grid.png", shape), random_pixels(shape, 0))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:99]), "is incomplete"),
        (lambda p: p.unlink(), r"cannot be read \(No such file"),
        (lambda p: write_image(p, random_pixels((3, 7, 9), 0)), r"\(8-bit RGB, 9 x 7\)"),
        (lambda p: Image.open(p).convert("RGBA").save(p), r"\(8-bit RGBA, 9 x 6\)"),
    ],
)
def test_a_grid_names_the_image_that_does_not_fit(spoil, said, tmp_path):
    images = write_random(tmp_path, COLOUR, 3)
    spoil(images[2])
    with pytest.raises(UserError, match=rf"'{images[2]}' .*{said}"):
        write_grid(images, tmp_path / "grid.png")
    assert not (tmp_path / "grid.png").exists()
