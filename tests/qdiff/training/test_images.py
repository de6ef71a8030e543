import numpy as np
import pytest
import torch

from qdiff.errors import UserError
from qdiff.training.images import ImageDataset


@pytest.fixture
def archive(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "images": rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8),
        "names": np.array([f"name {i}" for i in range(6)]),
        "category": np.array(["b", "a", "c", "b", "a", "b"]),
    }
    np.savez(tmp_path / "images.npz", **arrays)
    return tmp_path / "images.npz", arrays


def test_images_are_averaged_down_and_scaled(archive):
    path, arrays = archive
    data = ImageDataset(path, 4)
    blocks = arrays["images"].reshape(6, 4, 2, 4, 2, 3).mean((2, 4)).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(data.images, blocks / 127.5 - 1, atol=1e-6)
    whole = ImageDataset(path, 8)
    assert torch.equal(((whole[3][0] + 1) * 127.5).round().byte().permute(1, 2, 0), torch.tensor(arrays["images"][3]))


def test_categories_become_labels_and_can_be_chosen(archive):
    data = ImageDataset(archive[0], 8)
    assert (data.classes, data.labels.tolist(), len(data)) == (["a", "b", "c"], [1, 0, 2, 1, 0, 1], 6)
    some = ImageDataset(archive[0], 8, ["b", "c"])
    assert some.names == ["name 0", "name 2", "name 3", "name 5"]
    assert (some.classes, [some[i][1].item() for i in range(4)]) == (["b", "c"], [0, 1, 0, 0])
    assert torch.equal(some.images, data.images[[0, 2, 3, 5]])


def test_flip_mirrors_about_half_of_the_images(archive):
    torch.manual_seed(0)
    plain, flipping = ImageDataset(archive[0], 8), ImageDataset(archive[0], 8, flip=True)
    drawn = [flipping[2][0] for _ in range(200)]
    mirrored = sum(torch.equal(x, plain[2][0].flip(-1)) for x in drawn)
    assert mirrored + sum(torch.equal(x, plain[2][0]) for x in drawn) == 200
    assert 70 < mirrored < 130


def test_other_archives_are_refused(archive, tmp_path):
    with pytest.raises(UserError, match=r"images.npz' has no image of \['d'\]: choose among its categories "):
        ImageDataset(archive[0], 8, ["d"])
    np.savez(tmp_path / "other.npz", images=archive[1]["images"])
    (tmp_path / "text.npz").write_text("no archive")
    for name, reason in {"other": "lacks an array", "text": "cannot read", "missing": "No such file"}.items():
        with pytest.raises(UserError, match=reason):
            ImageDataset(tmp_path / f"{name}.npz", 8)


def test_a_pickle_in_the_archive_is_not_executed(archive, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    np.savez(tmp_path / "bomb.npz", **(archive[1] | {"names": np.array([Bomb()] * 6, dtype=object)}))
    with pytest.raises(UserError, match="allow_pickle=False"):
        ImageDataset(tmp_path / "bomb.npz", 8)
    assert not (tmp_path / "executed").exists()
