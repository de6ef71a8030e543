"""Images and statistics in archives that numpy wrote, and broken ones."""

import io
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch

from qdiff.errors import UserError
from qdiff.files.npz import StoredImages, array_names, read_small

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 6, 9, 3), dtype=np.uint8)


def refusal(call) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value) and "x.npz'" in str(caught.value)
    return str(caught.value)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "x.npz"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_batches_are_the_images(save, size, path):
    save(path, arr_0=PIXELS, arr_1=np.arange(7))
    stored = StoredImages.open(path)
    assert (stored.count, stored.shape) == (7, (3, 6, 9))
    batches = list(stored.batches(size))
    assert [len(b) for b in batches][:-1] == [size] * (len(batches) - 1)
    np.testing.assert_array_equal(torch.cat(batches).permute(0, 2, 3, 1), PIXELS)


def test_grey_images(path):
    np.savez(path, arr_0=PIXELS[..., :1])
    assert next(StoredImages.open(path).batches(2)).shape == (2, 1, 6, 9)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (PIXELS / 255, "is float64 of shape (7, 6, 9, 3): give images as uint8"),
        (PIXELS[0], "is uint8 of shape (6, 9, 3)"),
        (PIXELS[:0], "is uint8 of shape (0, 6, 9, 3)"),
        (np.concatenate([PIXELS] * 2, -1), "is uint8 of shape (7, 6, 9, 6)"),
        (np.asfortranarray(PIXELS), "is uint8 of shape"),
        (np.array([{}]), "is object of shape (1,)"),
    ],
)
def test_other_arrays_are_refused(array, said, path):
    np.savez(path, arr_0=array)
    assert said in refusal(lambda: StoredImages.open(path))


def test_other_files_are_refused(path):
    np.savez(path, images=PIXELS)
    assert "no array 'arr_0'" in refusal(lambda: StoredImages.open(path))
    path.write_bytes(b"PNG")
    assert "not an intact .npz archive" in refusal(lambda: StoredImages.open(path))
    assert "not an intact .npz archive" in refusal(lambda: array_names(path))
    path.unlink()
    assert "cannot be read (No such file" in refusal(lambda: StoredImages.open(path))


@pytest.mark.parametrize("place", [300, 700, -400])
def test_damage_is_found(place, path):
    """Whichever part of the archive a flipped bit is in."""
    np.savez_compressed(path, arr_0=PIXELS)
    content = bytearray(path.read_bytes())
    content[place] ^= 16
    path.write_bytes(content)
    assert "not an intact" in refusal(lambda: list(StoredImages.open(path).batches(2)))


@pytest.mark.parametrize(("rows", "said"), [(2, "goes on after its end"), (9, "ends early")])
def test_an_array_that_is_not_as_long_as_it_says_is_refused(rows, said, path):
    stated = io.BytesIO()
    np.save(stated, np.empty((rows, 6, 9, 3), np.uint8))
    header = stated.getvalue()[: -rows * 6 * 9 * 3]
    with ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", header + PIXELS.tobytes())
    assert said in refusal(lambda: list(StoredImages.open(path).batches(2)))


def test_statistics_are_read_in_float64(path):
    np.savez(path, mu=np.arange(3, dtype=np.float32), sigma=np.eye(3), n=5)
    found = read_small(path, ["mu", "sigma"])
    assert found["mu"].dtype == torch.float64 and found["mu"].tolist() == [0, 1, 2]
    assert array_names(path) == ["mu", "sigma", "n"]
    assert "no array 'mu_s'" in refusal(lambda: read_small(path, ["mu_s"]))


@pytest.mark.parametrize(
    ("mu", "said"),
    [(np.array([1, np.nan]), "'mu' holds NaN"), (np.array([{}]), "allow_pickle=False"), (np.array(["a"]), "intact")],
)
def test_statistics_that_are_no_numbers_are_refused(mu, said, path):
    np.savez(path, mu=mu)
    assert said in refusal(lambda: read_small(path, ["mu"]))
