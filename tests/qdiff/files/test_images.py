import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qdiff.errors import UserError
from qdiff.files.images import (
    check_channels,
    check_image,
    image_shape,
    read_image,
    read_images,
    to_uint8,
    write_image,
)
from tests.pngs import COLOUR, GREY, random_pixels, spoil, write_random


@pytest.mark.parametrize(("shape", "mode"), [(COLOUR, "RGB"), (GREY, "L"), ((1, 1, 1), "L")])
def test_pixels_stay_what_they_are(shape, mode, tmp_path):
    path = tmp_path / "a.png"
    write_image(path, random_pixels(shape, 0), {"prompt": "🍎, naïve", "raw": "bad\udcff"})
    image = Image.open(path)
    assert (image.mode, image.size) == (mode, (shape[2], shape[1]))
    assert image.text == {"prompt": "🍎, naïve", "raw": "bad?"}
    np.testing.assert_array_equal(np.atleast_3d(np.asarray(image)), random_pixels(shape, 0).permute(1, 2, 0))
    assert image_shape(path) == shape
    check_image(path, shape)
    assert torch.equal(read_image(path, shape), random_pixels(shape, 0))


def test_several_are_read_in_order_and_must_be_alike(tmp_path):
    paths = write_random(tmp_path, COLOUR, 3)
    assert torch.equal(read_images(paths), torch.stack([random_pixels(COLOUR, seed) for seed in range(3)]))
    write_image(paths[1], random_pixels(GREY, 1))
    with pytest.raises(UserError, match=r"/1.png' is a different image \(8-bit grey, 9 x 6\) .* \(8-bit RGB, 9 x 6\)"):
        read_images(paths)


def convert(path: Path, mode: str) -> None:
    image = Image.open(path).convert(mode)
    image.save(path, format="PNG")


FOREIGN = {
    "empty": (lambda p: p.write_bytes(b""), "is not a PNG"),
    "text": (lambda p: p.write_text("<html>" * 20), "is not a PNG"),
    "JPEG": (lambda p: Image.open(p).save(p, format="JPEG"), "is not a PNG"),
    "start alone": (lambda p: p.write_bytes(p.read_bytes()[:20]), "is not a PNG"),
    "cut in the header": (lambda p: p.write_bytes(p.read_bytes()[:30]), "is incomplete .*end"),
    "half": (lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]), "is incomplete .*end"),
    "one byte less": (lambda p: p.write_bytes(p.read_bytes()[:-1]), "is incomplete .*end"),
    "one byte more": (lambda p: p.write_bytes(p.read_bytes() + b"\0"), "is incomplete .*end"),
    "as long, end of zeros": (lambda p: spoil(p, p.stat().st_size - 12, bytes(12)), "is incomplete .*end"),
    "higher": (lambda p: write_image(p, random_pixels((3, 7, 9), 0)), r"\(8-bit RGB, 9 x 7\)"),
    "turned": (lambda p: write_image(p, random_pixels((3, 9, 6), 0)), r"\(8-bit RGB, 6 x 9\)"),
    "grey": (lambda p: convert(p, "L"), r"\(8-bit grey, 9 x 6\)"),
    "palette": (lambda p: convert(p, "P"), r"\(8-bit palette, 9 x 6\)"),
    "black and white": (lambda p: convert(p, "1"), r"\(1-bit grey, 9 x 6\)"),
    "16 bits": (lambda p: convert(p, "I;16"), r"\(16-bit grey, 9 x 6\)"),
    "alpha": (lambda p: convert(p, "RGBA"), r"\(8-bit RGBA, 9 x 6\)"),
    "grey with alpha": (lambda p: convert(p, "LA"), r"\(8-bit grey with alpha, 9 x 6\)"),
    "missing": (lambda p: p.unlink(), r"cannot be read \(No such file"),
    "folder": (lambda p: (p.unlink(), p.mkdir()), "is not a file"),
    "pipe": (lambda p: (p.unlink(), os.mkfifo(p)), "is not a file"),
    "device": (lambda p: (p.unlink(), p.symlink_to("/dev/zero")), "is not a file"),
    "link to nothing": (lambda p: (p.unlink(), p.symlink_to("none")), r"cannot be read \(No such file"),
    "link to itself": (lambda p: (p.unlink(), p.symlink_to(p.name)), r"cannot be read \(Too many levels"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_not_the_image_is_named_and_left_alone(kind, tmp_path):
    (path,) = write_random(tmp_path, COLOUR, 1)
    make, said = FOREIGN[kind]
    make(path)
    for look in (check_image, read_image):
        with pytest.raises(UserError, match=rf"^'{path}' .*{said}.*: move or delete it, and .*again$") as caught:
            look(path, COLOUR)
        assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ([] if kind == "missing" else ["0.png"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_an_image_that_may_not_be_read(tmp_path):
    (path,) = write_random(tmp_path, COLOUR, 1)
    path.chmod(0)
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied\)"):
        check_image(path, COLOUR)


@pytest.mark.parametrize("place", [45, 60, 80])
def test_damaged_pixels_are_found_when_they_are_read(place, tmp_path):
    (path,) = write_random(tmp_path, COLOUR, 1)
    spoil(path, place, b"\xff\x00\xff\x00")
    check_image(path, COLOUR)
    with pytest.raises(UserError, match=r"'.*/0.png' is damaged .*: move or delete it"):
        read_image(path, COLOUR)


def test_pixels_are_the_nearest_of_256_levels():
    x = torch.tensor([-9.0, -1.0, -0.5, 0.0, 0.3, 1.0, 9.0, -1 + 2 * 0.49 / 255, -1 + 2 * 0.51 / 255])
    assert to_uint8(x).tolist() == [0, 0, 64, 128, 166, 255, 255, 0, 1]
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(levels.float() / 127.5 - 1), levels)
    assert to_uint8(levels.bfloat16() / 127.5 - 1).dtype == torch.uint8


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_other_numbers_of_channels_are_refused(channels):
    check_channels(1)
    check_channels(3)
    with pytest.raises(UserError, match=f"images of {channels} channels cannot be written"):
        check_channels(channels)
