import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from qdiff.errors import UserError
from qdiff.files.pictures import (
    check_channels,
    check_picture,
    picture_shape,
    read_picture,
    read_pictures,
    write_grid,
    write_picture,
)

COLOUR, GREY = (3, 6, 9), (1, 6, 9)


def pixels_of(shape: tuple[int, int, int], seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def written(folder: Path, shape: tuple[int, int, int], count: int) -> list[Path]:
    """PNGs of random pixels."""
    paths = [folder / f"{i}.png" for i in range(count)]
    for seed, path in enumerate(paths):
        write_picture(path, pixels_of(shape, seed), {})
    return paths


@pytest.mark.parametrize(("shape", "mode"), [(COLOUR, "RGB"), (GREY, "L"), ((1, 1, 1), "L")])
def test_pixels_stay_what_they_are(shape, mode, tmp_path):
    path = tmp_path / "a.png"
    write_picture(path, pixels_of(shape, 0), {"prompt": "🍎, naïve", "raw": "bad\udcff"})
    picture = Image.open(path)
    assert (picture.mode, picture.size) == (mode, (shape[2], shape[1]))
    assert picture.text == {"prompt": "🍎, naïve", "raw": "bad?"}
    np.testing.assert_array_equal(np.atleast_3d(np.asarray(picture)), pixels_of(shape, 0).permute(1, 2, 0))
    assert picture_shape(path) == shape
    check_picture(path, shape)
    assert torch.equal(read_picture(path, shape), pixels_of(shape, 0))


def test_several_are_read_in_order_and_must_be_alike(tmp_path):
    paths = written(tmp_path, COLOUR, 3)
    assert torch.equal(read_pictures(paths), torch.stack([pixels_of(COLOUR, seed) for seed in range(3)]))
    write_picture(paths[1], pixels_of(GREY, 1), {})
    with pytest.raises(UserError, match=r"/1.png' is another picture \(8-bit grey, 9 x 6\) .* \(8-bit RGB, 9 x 6\)"):
        read_pictures(paths)


def spoil(path: Path, place: int, value: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[place : place + len(value)] = value
    path.write_bytes(content)


def convert(path: Path, mode: str) -> None:
    picture = Image.open(path).convert(mode)
    picture.save(path, format="PNG")


FOREIGN = {
    "empty": (lambda p: p.write_bytes(b""), "is no PNG"),
    "text": (lambda p: p.write_text("<html>" * 20), "is no PNG"),
    "JPEG": (lambda p: Image.open(p).save(p, format="JPEG"), "is no PNG"),
    "start alone": (lambda p: p.write_bytes(p.read_bytes()[:20]), "is no PNG"),
    "cut in the header": (lambda p: p.write_bytes(p.read_bytes()[:30]), "not a whole picture .*end"),
    "half": (lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]), "not a whole picture .*end"),
    "one byte less": (lambda p: p.write_bytes(p.read_bytes()[:-1]), "not a whole picture .*end"),
    "one byte more": (lambda p: p.write_bytes(p.read_bytes() + b"\0"), "not a whole picture .*end"),
    "as long, end of zeros": (lambda p: spoil(p, p.stat().st_size - 12, bytes(12)), "not a whole picture .*end"),
    "higher": (lambda p: write_picture(p, pixels_of((3, 7, 9), 0), {}), r"\(8-bit RGB, 9 x 7\)"),
    "turned": (lambda p: write_picture(p, pixels_of((3, 9, 6), 0), {}), r"\(8-bit RGB, 6 x 9\)"),
    "grey": (lambda p: convert(p, "L"), r"\(8-bit grey, 9 x 6\)"),
    "palette": (lambda p: convert(p, "P"), r"\(8-bit palette, 9 x 6\)"),
    "black and white": (lambda p: convert(p, "1"), r"\(1-bit grey, 9 x 6\)"),
    "16 bits": (lambda p: convert(p, "I;16"), r"\(16-bit grey, 9 x 6\)"),
    "alpha": (lambda p: convert(p, "RGBA"), r"\(8-bit RGBA, 9 x 6\)"),
    "grey with alpha": (lambda p: convert(p, "LA"), r"\(8-bit grey with alpha, 9 x 6\)"),
    "missing": (lambda p: p.unlink(), r"cannot be read \(No such file"),
    "folder": (lambda p: (p.unlink(), p.mkdir()), "is no file"),
    "pipe": (lambda p: (p.unlink(), os.mkfifo(p)), "is no file"),
    "device": (lambda p: (p.unlink(), p.symlink_to("/dev/zero")), "is no file"),
    "link to nothing": (lambda p: (p.unlink(), p.symlink_to("none")), r"cannot be read \(No such file"),
    "link to itself": (lambda p: (p.unlink(), p.symlink_to(p.name)), r"cannot be read \(Too many levels"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_not_the_picture_is_named_and_left_alone(kind, tmp_path):
    (path,) = written(tmp_path, COLOUR, 1)
    make, said = FOREIGN[kind]
    make(path)
    for look in (check_picture, read_picture):
        with pytest.raises(UserError, match=rf"^'{path}' .*{said}.*: move or delete it, and .*again$") as caught:
            look(path, COLOUR)
        assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ([] if kind == "missing" else ["0.png"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_picture_that_may_not_be_read(tmp_path):
    (path,) = written(tmp_path, COLOUR, 1)
    path.chmod(0)
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied\)"):
        check_picture(path, COLOUR)


@pytest.mark.parametrize("place", [45, 60, 80])
def test_damaged_pixels_are_found_when_they_are_read(place, tmp_path):
    (path,) = written(tmp_path, COLOUR, 1)
    spoil(path, place, b"\xff\x00\xff\x00")
    check_picture(path, COLOUR)
    with pytest.raises(UserError, match=r"'.*/0.png' is not a whole picture .*: move or delete it"):
        read_picture(path, COLOUR)


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_other_numbers_of_channels_are_refused(channels):
    check_channels(1)
    check_channels(3)
    with pytest.raises(UserError, match=f"images of {channels} channels cannot be written"):
        check_channels(channels)


@pytest.mark.parametrize("shape", [COLOUR, GREY])
def test_grid(shape, tmp_path):
    pictures = written(tmp_path, shape, 7)
    write_grid(pictures, tmp_path / "grid.png", text={"seed": "1"})
    picture = Image.open(tmp_path / "grid.png")
    assert (picture.mode, picture.text) == ("RGB" if shape == COLOUR else "L", {"seed": "1"})
    grid = np.atleast_3d(np.asarray(picture))
    assert grid.shape == (2 + 3 * 8, 2 + 3 * 11, shape[0])
    for i, path in enumerate(pictures):
        top, left = 2 + i // 3 * 8, 2 + i % 3 * 11
        np.testing.assert_array_equal(grid[top : top + 6, left : left + 9], np.atleast_3d(np.asarray(Image.open(path))))
    assert not grid[18:, 13:].any()
    write_grid(pictures, tmp_path / "row.png", 7)
    assert Image.open(tmp_path / "row.png").size == (2 + 7 * 11, 2 + 8)


@pytest.mark.parametrize("shape", [COLOUR, GREY])
def test_a_grid_of_one_is_the_picture(shape, tmp_path):
    write_grid(written(tmp_path, shape, 1), tmp_path / "grid.png")
    assert torch.equal(read_picture(tmp_path / "grid.png", shape), pixels_of(shape, 0))


@pytest.mark.parametrize("kind", ["half", "missing", "higher", "alpha"])
def test_a_grid_names_the_picture_that_does_not_belong(kind, tmp_path):
    pictures = written(tmp_path, COLOUR, 3)
    FOREIGN[kind][0](pictures[2])
    with pytest.raises(UserError, match=rf"'{pictures[2]}' .*{FOREIGN[kind][1]}"):
        write_grid(pictures, tmp_path / "grid.png")
    assert not (tmp_path / "grid.png").exists()
