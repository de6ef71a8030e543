import os
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch

from qdiff.errors import UserError
from qdiff.files.arrays import write_array
from qdiff.files.images import write_image

COLOUR, GREY = (3, 6, 9), (1, 6, 9)


def pixels_of(shape: tuple[int, int, int], count: int) -> np.ndarray:
    """uint8 (N, H, W, C)."""
    return np.random.default_rng(0).integers(0, 256, (count, *shape[1:], shape[0]), dtype=np.uint8)


def written(folder: Path, shape: tuple[int, int, int], count: int) -> list[Path]:
    """PNGs of `pixels_of`, an hour old."""
    paths = [folder / f"{i}.png" for i in range(count)]
    for path, pixels in zip(paths, pixels_of(shape, count)):
        write_image(path, torch.from_numpy(pixels).permute(2, 0, 1))
        os.utime(path, (path.stat().st_mtime - 3600,) * 2)
    return paths


def content(path: Path) -> np.ndarray:
    with np.load(path, allow_pickle=False) as archive:
        assert archive.files == ["arr_0"]
        return archive["arr_0"]


@pytest.mark.parametrize("shape", [COLOUR, GREY])
def test_the_array_holds_the_images(shape, tmp_path):
    path = write_array(written(tmp_path, shape, 5), tmp_path)
    assert path.name == f"5x6x9x{shape[0]}-samples.npz"
    assert content(path).dtype == np.uint8
    np.testing.assert_array_equal(content(path), pixels_of(shape, 5))


@pytest.mark.parametrize("shape", [COLOUR, GREY])
def test_it_replaces_those_of_other_numbers_and_nothing_else(shape, tmp_path):
    images = written(tmp_path, shape, 5)
    kept = ["mine5x6x9x3-samples.npz", "5x6x10x3-samples.npz", "5x6x9x3-samples.npz.bak", "5x6x9x1.npz"]
    for name in kept:
        (tmp_path / name).touch()
    write_array(images[:3], tmp_path)
    write_array(images, tmp_path)
    left = {p.name for p in tmp_path.iterdir()} - {p.name for p in images}
    assert left == {f"5x6x9x{shape[0]}-samples.npz", *kept}


def test_one_that_is_newer_than_its_images_stays(tmp_path):
    images = written(tmp_path, COLOUR, 5)
    before = write_array(images, tmp_path).stat().st_ino
    assert write_array(images, tmp_path).stat().st_ino == before
    os.utime(images[3])
    os.utime(tmp_path / "5x6x9x3-samples.npz", (0, 0))
    assert write_array(images, tmp_path).stat().st_ino != before


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def other(path: Path) -> None:
    np.savez(path, np.zeros((4, 6, 9, 3), np.uint8))


def other_member(path: Path) -> None:
    with ZipFile(path, "w") as archive:
        archive.writestr("x", "y")


@pytest.mark.parametrize("spoil", [cut, other, other_member, lambda path: path.write_bytes(b"")])
def test_one_that_is_not_whole_is_written_again(spoil, tmp_path):
    images = written(tmp_path, COLOUR, 5)
    path = write_array(images, tmp_path)
    spoil(path)
    write_array(images, tmp_path)
    np.testing.assert_array_equal(content(path), pixels_of(COLOUR, 5))


@pytest.mark.parametrize("shape", [(3, 6, 8), (3, 9, 6), (1, 6, 9)])
def test_an_image_of_another_shape_is_named_and_no_array_written_or_replaced(shape, tmp_path):
    images = written(tmp_path, COLOUR, 5)
    older = write_array(images[:3], tmp_path)
    before = older.read_bytes()
    write_image(images[4], torch.zeros(shape, dtype=torch.uint8))
    with pytest.raises(UserError, match=rf"^'{images[4]}' is a different image .* than expected \(8-bit RGB, 9 x 6"):
        write_array(images, tmp_path)
    assert older.read_bytes() == before
    assert {p.suffix for p in tmp_path.iterdir()} == {".png", ".npz"} and len(list(tmp_path.glob("*.npz"))) == 1
