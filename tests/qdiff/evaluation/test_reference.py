"""References: images with cached statistics, and statistics that others computed."""

from pathlib import Path

import numpy as np
import pytest
import torch

from qdiff.errors import UserError
from qdiff.evaluation.feature_network import Features
from qdiff.evaluation.image_sets import Stream
from qdiff.evaluation.reference import gathered, load_reference, offers
from qdiff.evaluation.statistics_file import write_statistics
from qdiff.files.images import image_path, write_image
from tests.qdiff.evaluation.networks import MeanColours, drawn_images

IMAGES = drawn_images(7, 0)
VECTORS = IMAGES.double().mean((2, 3)).numpy()
HALVES = IMAGES.double().unflatten(2, (2, -1)).mean((1, 3, 4)).numpy()
PIXELS = IMAGES.permute(0, 2, 3, 1).numpy()
STATISTICS = {"mu": np.arange(3.0), "sigma": np.eye(3)}
SPATIAL = {"mu_s": np.arange(2.0), "sigma_s": np.eye(2)}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "qdiff" / "statistics"


@pytest.fixture
def folder(tmp_path) -> Path:
    for i, pixels in enumerate(IMAGES):
        write_image(image_path(tmp_path / "photos", i), pixels)
    return tmp_path / "photos"


def archive(tmp_path: Path, **arrays) -> Path:
    np.savez(tmp_path / "reference.npz", **arrays)
    return tmp_path / "reference.npz"


def refusal(call) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_images_give_the_statistics_of_their_features(folder):
    found = load_reference(folder, MeanColours(), features=True, size=3)
    np.testing.assert_allclose(found.vectors.mu, VECTORS.mean(0))
    np.testing.assert_allclose(found.vectors.sigma, np.cov(VECTORS.T))
    np.testing.assert_allclose(found.spatial.sigma, np.cov(HALVES.T))
    np.testing.assert_allclose(found.features, VECTORS)
    assert (found.images.number, found.images.shape, found.images.kind) == (7, (3, 8, 8), "images")


def test_statistics_are_computed_once(folder, tmp_path):
    first, again, array = MeanColours(), MeanColours(), MeanColours()
    found = load_reference(folder, first, features=False, size=3)
    cached = load_reference(folder, again, features=False, size=5)
    assert (first.calls, again.calls) == (3, 0)
    assert torch.equal(found.vectors.sigma, cached.vectors.sigma) and found.images == cached.images
    same = load_reference(archive(tmp_path, arr_0=PIXELS), array, features=False, size=7)
    assert array.calls == 1 and same.images.sha256 == found.images.sha256, "other files, the same pixels"


@pytest.mark.parametrize("change", ["pixels", "network", "features"])
def test_what_changes_the_statistics_is_not_taken_from_the_cache(change, folder):
    before = load_reference(folder, MeanColours(), features=False, size=7)
    network = MeanColours(sha256="c" * 64) if change == "network" else MeanColours()
    if change == "pixels":
        write_image(image_path(folder, 3), IMAGES[2])
    found = load_reference(folder, network, features=change == "features", size=7)
    assert network.calls == 1
    assert torch.equal(found.vectors.mu, before.vectors.mu) == (change != "pixels")


def test_statistics_of_several_networks_are_kept(folder):
    first, second = MeanColours(), MeanColours(sha256="c" * 64)
    for network in (first, second, first, second):
        load_reference(folder, network, features=False, size=7)
    assert (first.calls, second.calls) == (1, 1)


def test_a_damaged_or_read_only_cache_only_costs_time(folder, cache, caplog):
    load_reference(folder, MeanColours(), features=False, size=7)
    (file,) = cache.iterdir()
    file.write_bytes(b"x" * 100)
    network = MeanColours()
    load_reference(folder, network, features=False, size=7)
    assert network.calls == 1 and "computed again" in caplog.text
    file.unlink()
    cache.rmdir()
    cache.write_text("in the way")
    load_reference(folder, network, features=False, size=7)
    assert network.calls == 2 and "not cached" in caplog.text


def test_a_reference_batch_of_adm_has_statistics_and_images(tmp_path):
    """FID comes from its statistics, which are of more images than it holds, precision and recall from its images."""
    path = archive(tmp_path, arr_0=PIXELS, **STATISTICS, **SPATIAL)
    network = MeanColours(standard=True)
    found = load_reference(path, network, features=False, size=7)
    assert network.calls == 0 and found.vectors.mu.tolist() == [0, 1, 2] and found.spatial.mu.tolist() == [0, 1]
    assert (found.images.kind, found.images.number, found.images.shape) == ("statistics", None, (3, 8, 8))
    found = load_reference(path, network, features=True, size=7)
    assert found.vectors.mu.tolist() == [0, 1, 2]
    np.testing.assert_allclose(found.features, VECTORS)
    assert offers(path, network.identity) == {"vectors", "spatial"}


def test_of_another_network_its_images_are_used(tmp_path):
    path = archive(tmp_path, arr_0=PIXELS, **STATISTICS)
    found = load_reference(path, MeanColours(), features=False, size=7)
    np.testing.assert_allclose(found.vectors.mu, VECTORS.mean(0))


def test_statistics_of_the_field(tmp_path):
    path = archive(tmp_path, **STATISTICS)
    found = load_reference(path, MeanColours(standard=True), features=False, size=7)
    assert torch.equal(found.vectors.sigma, torch.eye(3).double()) and found.spatial is None
    assert (found.images.number, found.images.shape) == (None, None)
    assert offers(path, MeanColours(standard=True).identity) == set()
    said = refusal(lambda: load_reference(path, MeanColours(standard=True), features=True, size=7))
    assert "KID, precision and recall need the reference's images" in said
    said = refusal(lambda: load_reference(path, MeanColours(), features=False, size=7))
    assert "does not say of which feature network its statistics are" in said


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"mu": np.zeros(4), "sigma": np.eye(4)}, "the network has 3 features"),
        ({"mu": np.zeros(3), "sigma": np.full((3, 3), np.nan)}, "'sigma' holds NaN"),
        ({"mean": np.zeros(3)}, "no array 'arr_0'"),
        ({"arr_0": PIXELS[:1]}, "has one image, statistics need at least 2"),
    ],
)
def test_bad_archives(arrays, said, tmp_path):
    path = archive(tmp_path, **arrays)
    assert said in refusal(lambda: load_reference(path, MeanColours(standard=True), features=False, size=7))


def test_our_own_statistics(folder, tmp_path):
    written = gathered(Stream([IMAGES]), MeanColours(), features=False, size=7)
    write_statistics(tmp_path / "own.safetensors", written)
    found = load_reference(tmp_path / "own.safetensors", MeanColours(), features=False, size=7)
    assert torch.equal(found.vectors.sigma, written.vectors.sigma) and found.images.number == 7
    assert offers(tmp_path / "own.safetensors", MeanColours().identity) == {"spatial"}
    other = MeanColours(sha256="c" * 64)
    assert "another feature network" in refusal(
        lambda: load_reference(tmp_path / "own.safetensors", other, features=False, size=7)
    )


def test_features_that_are_not_finite_are_refused(folder):
    class Broken(MeanColours):
        def extract(self, images):
            return Features(torch.full((len(images), 3), torch.nan), torch.zeros(len(images), 2))

    said = refusal(lambda: load_reference(folder, Broken(), features=False, size=7))
    assert "mean-colours gives features that are not finite" in said


def test_what_is_missing_is_refused(tmp_path):
    said = refusal(lambda: offers(tmp_path / "none", MeanColours().identity))
    assert "none' does not exist: give --reference" in said
