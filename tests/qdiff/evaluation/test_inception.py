"""The Inception network, with random weights: against torch-fidelity's own numbers, and what it is called."""

import json
from pathlib import Path

import pytest
import torch
import torch_fidelity
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

import qdiff
from qdiff.errors import UserError
from qdiff.evaluation.inception import Inception, load_inception
from qdiff.files import download
from qdiff.files.digest import file_digest
from qdiff.files.images import image_path, write_image
from tests.qdiff.evaluation.networks import drawn_images
from tests.qdiff.evaluation.random_inception import write_inception

COUNTS = {"a": 24, "b": 20}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    write_inception(path)
    return path


@pytest.fixture(scope="module")
def network(weights) -> Inception:
    return load_inception(weights, CPU)


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> Path:
    """Folders of PNGs, a and b."""
    folder = tmp_path_factory.mktemp("sets")
    for seed, (name, count) in enumerate(COUNTS.items()):
        for i, pixels in enumerate(drawn_images(count, seed, size=32)):
            write_image(image_path(folder / name, i), pixels)
    return folder


def test_values_are_those_of_torch_fidelity(weights, sets, monkeypatch, tmp_path):
    """FID and KID to the rounding of float32 means; the others exactly."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    metrics = ["fid", "is", "kid", "prc"]
    found = qdiff.evaluate(
        sets / "a", reference=sets / "b", metrics=metrics, inception=weights, few=True, device="cpu", batch_size=10
    ).values
    expected = torch_fidelity.calculate_metrics(
        input1=str(sets / "a"),
        input2=str(sets / "b"),
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(weights),
        kid_subset_size=20,
        **dict.fromkeys(("fid", "isc", "kid", "prc", "save_cpu_ram"), True),
        **dict.fromkeys(("cuda", "cache", "verbose"), False),
    )
    assert found["frechet"] == pytest.approx(expected["frechet_inception_distance"], rel=1e-4)
    assert found["class_score"] == pytest.approx(expected["inception_score_mean"], rel=1e-6)
    assert found["class_score_std"] == pytest.approx(expected["inception_score_std"], rel=1e-4)
    assert found["kernel_distance"] == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-4)
    assert found["kernel_distance_std"] == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-3)
    assert found["plain_precision"] == expected["precision"] and found["plain_recall"] == expected["recall"]
    assert found["frechet"] > 0.1 and found["class_score"] > 1.001, "there is something to compare"


def test_spatial_features_are_those_of_adm(network, weights):
    """The first seven channels of TensorFlow's `mixed_6/conv`, with channels last as TensorFlow has them."""
    images = drawn_images(2, 0, size=32)
    own = FeatureExtractorInceptionV3("own", ["768"], feature_extractor_weights_path=str(weights))
    before = []
    own.Mixed_6d.register_forward_hook(lambda module, args, output: before.extend(args))
    own(images)
    conv, norm = own.Mixed_6d.branch1x1.conv, own.Mixed_6d.branch1x1.bn
    expected = norm(conv(before[0])).relu()[:, :7]
    found = network.extract(images).spatial
    assert found.shape == (2, 2023) and network.identity.spatial == 2023
    places = [(y, x, c) for y in range(17) for x in range(17) for c in range(7)]
    torch.testing.assert_close(found, torch.stack([expected[:, c, y, x] for y, x, c in places], 1))
    assert found.std(0).max() > 0.01 and found.std(1).min() > 0.01


def test_other_weights_are_not_the_inception_of_fid(network, weights):
    sha256 = file_digest(weights)
    assert (network.identity.standard, network.identity.sha256) == (False, sha256)
    assert network.identity.name == f"Inception-weights-{sha256[:8]}"


def test_the_published_digest_makes_it_the_inception_of_fid(weights, monkeypatch, tmp_path):
    published = json.loads(download.PUBLISHED.read_text())
    entry = published["features"]["inception"]
    assert entry["file"].endswith(f"{entry['sha256'][:8]}.pth") and len(entry["sha256"]) == 64
    entry["sha256"] = file_digest(weights)
    (tmp_path / "published.json").write_text(json.dumps(published))
    monkeypatch.setattr(download, "PUBLISHED", tmp_path / "published.json")
    identity = load_inception(weights, CPU).identity
    assert (identity.standard, identity.name) == (True, "Inception")


def test_weights_of_the_cache_are_used_and_a_failed_download_is_one_line(weights, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    published = json.loads(download.PUBLISHED.read_text())
    entry = published["features"]["inception"]
    entry |= {"sha256": file_digest(weights), "url": "http://127.0.0.1:1/w"}
    (tmp_path / "published.json").write_text(json.dumps(published))
    monkeypatch.setattr(download, "PUBLISHED", tmp_path / "published.json")
    with pytest.raises(UserError, match=r"cannot get http://127\.0\.0\.1:1/w .*give one with --inception FILE"):
        load_inception(None, CPU)
    path = tmp_path / "qdiff" / entry["file"]
    path.symlink_to(weights)
    assert load_inception(None, CPU).identity.standard


class Payload:
    """Would run a command when it is unpickled."""

    def __reduce__(self):
        return eval, ("open('/tmp/qdiff_was_here', 'w')",)


def test_a_file_that_would_run_code_is_refused(tmp_path):
    torch.save({"x": Payload()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth"):
        load_inception(tmp_path / "w.pth", CPU)
    assert not Path("/tmp/qdiff_was_here").exists()


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save({"w": torch.zeros(3)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth' does not hold the weights of FID's Inception network: give"):
        load_inception(tmp_path / "w.pth", CPU)
