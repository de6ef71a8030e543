"""Images of other programs: pixels as Pillow decodes them, and files that are refused in one line."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qdiff.errors import UserError
from qdiff.files.foreign_images import common_shape, foreign_shape, list_images, read_foreign
from tests.pngs import COLOUR, GREY, random_pixels

FORMATS = ("png", "jpg", "JPEG", "webp")


def pillow(shape: tuple[int, int, int], seed: int = 0) -> Image.Image:
    return Image.fromarray(random_pixels(shape, seed).permute(1, 2, 0).squeeze(2).numpy())


def saved(path: Path, image: Image.Image, **options) -> Path:
    kind = {"jpg": "JPEG", "jpeg": "JPEG"}.get(path.suffix[1:].lower(), path.suffix[1:])
    image.save(path, format=kind, **options)
    return path


@pytest.mark.parametrize("extension", FORMATS)
@pytest.mark.parametrize("shape", [COLOUR, GREY])
def test_pixels_are_those_that_pillow_decodes(extension, shape, tmp_path):
    path = saved(tmp_path / f"a.{extension}", pillow(shape))
    expected = torch.from_numpy(np.atleast_3d(np.array(Image.open(path)))).permute(2, 0, 1)
    own = foreign_shape(path)
    assert own == tuple(expected.shape) and torch.equal(read_foreign(path, own), expected)
    if extension == "png":
        assert torch.equal(expected, random_pixels(shape, 0))
    else:
        assert not torch.equal(expected, random_pixels(shape, 0).expand_as(expected)), "it loses detail"


def test_webp_without_loss_keeps_every_pixel(tmp_path):
    path = saved(tmp_path / "a.webp", pillow(COLOUR), lossless=True)
    assert torch.equal(read_foreign(path, COLOUR), random_pixels(COLOUR, 0))


def test_a_folder_is_listed_by_name_whatever_the_formats(tmp_path):
    for name in ("b.PNG", "a.jpg", "d.webp", "c.jpeg", "notes.txt", "e.gif"):
        (tmp_path / name).touch()
    assert [path.name for path in list_images(tmp_path)] == ["a.jpg", "b.PNG", "c.jpeg", "d.webp"]
    with pytest.raises(UserError, match="none' cannot be read"):
        list_images(tmp_path / "none")


def test_grey_images_among_others_get_three_equal_channels(tmp_path):
    paths = [saved(tmp_path / "a.jpg", pillow(GREY)), saved(tmp_path / "b.png", pillow(COLOUR))]
    assert common_shape(paths[:1]) == GREY and common_shape(paths) == common_shape(paths[::-1]) == COLOUR
    grey = read_foreign(paths[0], COLOUR)
    assert (
        grey.shape == COLOUR and torch.equal(grey[:1], read_foreign(paths[0], GREY)) and torch.equal(grey[0], grey[2])
    )


def test_mixed_sizes_are_refused_with_both_and_a_way_out(tmp_path):
    paths = [saved(tmp_path / "a.jpg", pillow(COLOUR)), saved(tmp_path / "b.jpg", pillow((3, 9, 9)))]
    with pytest.raises(UserError) as caught:
        common_shape(paths)
    assert "images of 9 x 6 ('a.jpg') and 9 x 9 ('b.jpg') pixels: crop and resize them to one size" in str(caught.value)


def encoded(kind: str, mode: str = "RGB", **options) -> bytes:
    out = io.BytesIO()
    Image.new(mode, (9, 6)).save(out, format=kind, **options)
    return out.getvalue()


RED = Image.new("RGB", (9, 6), "red")
BAD = {
    "a.jpg, CMYK": (encoded("JPEG", "CMYK"), "is CMYK, not 8-bit grey or RGB: convert it"),
    "a.webp, transparent": (encoded("WEBP", "RGBA"), "is RGB with transparency, not 8-bit grey or RGB"),
    "a.webp, animated": (encoded("WEBP", save_all=True, append_images=[RED]), "is animated, not 8-bit grey or RGB"),
    "a.jpg, of a PNG": (encoded("PNG"), "is not an intact JPEG"),
    "a.png, of a JPEG": (encoded("JPEG"), "is not a PNG"),
    "a.webp, of a JPEG": (encoded("JPEG"), "is not an intact WebP"),
    "a.jpg, empty": (b"", "is not an intact JPEG"),
    "a.jpg, cut in the header": (encoded("JPEG")[:30], "a.jpg'"),
    "a.jpg, cut in the tables": (encoded("JPEG")[:-150], "a.jpg'"),
    "a.webp, cut": (encoded("WEBP", quality=100)[:-9], "a.webp'"),
    "a.png, transparent": (encoded("PNG", "RGBA"), "8-bit RGBA, 9 x 6"),
    "a.png, palette": (encoded("PNG", "P"), "palette, 9 x 6"),
    "a.png, 16 bits": (encoded("PNG", "I;16"), "16-bit grey, 9 x 6"),
}


@pytest.mark.parametrize("name", BAD)
def test_other_files_are_refused_in_one_line(name, tmp_path):
    content, says = BAD[name]
    path = tmp_path / name.partition(",")[0]
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_foreign(path, foreign_shape(path))
    assert says in str(caught.value) and "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_an_image_cut_in_its_pixels(tmp_path):
    path = saved(tmp_path / "a.jpg", pillow((3, 64, 64)))
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(UserError, match=r"a\.jpg' cannot be read \(image file is truncated"):
        read_foreign(path, foreign_shape(path))


@pytest.mark.parametrize("extension", ["png", "jpg"])
def test_what_is_no_file_is_refused(extension, tmp_path):
    pipe, folder, gone = (tmp_path / f"{name}.{extension}" for name in ("pipe", "folder", "gone"))
    os.mkfifo(pipe)
    folder.mkdir()
    gone.symlink_to("nowhere")
    for path, says in {pipe: "is not a file", folder: "is not a file", gone: "No such file or directory"}.items():
        with pytest.raises(UserError, match=says):
            foreign_shape(path)


def test_a_file_that_changes_meanwhile_is_refused(tmp_path):
    path = saved(tmp_path / "a.jpg", pillow(COLOUR))
    for shape in ((3, 6, 8), GREY):
        with pytest.raises(UserError, match="is of 9 x 6 pixels and 3 channels now"):
            read_foreign(path, shape)
