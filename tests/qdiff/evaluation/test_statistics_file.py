import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from qdiff.errors import UserError
from qdiff.evaluation.features import load_feature_net
from qdiff.evaluation.metrics import Statistics
from qdiff.evaluation.record import ImagesRecord
from qdiff.evaluation.statistics_file import SetStatistics, read_statistics, write_statistics
from tests.qdiff.evaluation.networks import MeanColours

BUNDLED = Path(__file__).parents[3] / "models" / "features" / "emoji32"
WHO = MeanColours().identity
IMAGES = ImagesRecord("photos", "images", 7, (3, 8, 8), "b" * 64, None)
KEPT = SetStatistics(
    WHO.name,
    WHO.sha256,
    IMAGES,
    Statistics(torch.rand(3).double(), torch.rand(7, 3).T.cov().double(), 7),
    Statistics(torch.rand(2).double(), torch.rand(7, 2).T.cov().double(), 7),
    torch.rand(7, 3),
)


@pytest.fixture
def path(tmp_path) -> Path:
    write_statistics(tmp_path / "reference.safetensors", KEPT)
    return tmp_path / "reference.safetensors"


def refusal(path: Path, network=WHO) -> str:
    with pytest.raises(UserError) as caught:
        read_statistics(path, network)
    assert "\n" not in str(caught.value) and "reference" in str(caught.value)
    return str(caught.value)


def test_statistics_survive_their_file(path):
    found = read_statistics(path, WHO)
    for part in ("vectors", "spatial"):
        assert all(map(torch.equal, getattr(found, part)[:2], getattr(KEPT, part)[:2]))
        assert getattr(found, part).n == 7
    assert torch.equal(found.features, KEPT.features)
    assert found.images == replace(IMAGES, source=str(path), kind="statistics")


def test_parts_that_are_missing_stay_so(path):
    write_statistics(path, replace(KEPT, spatial=None, features=None))
    found = read_statistics(path, WHO)
    assert found.spatial is None and found.features is None and torch.equal(found.vectors.mu, KEPT.vectors.mu)


def test_a_damaged_file_is_refused(path, tmp_path):
    path.write_bytes(path.read_bytes()[:-1])
    assert "cannot be read as safetensors" in refusal(path)
    assert "cannot read" in refusal(tmp_path / "no reference")


def test_another_network_is_refused(path):
    other = MeanColours(sha256="c" * 64).identity
    assert "another feature network (mean-colours, sha256 aaaaaaaa) than the one in use" in refusal(path, other)


def test_other_dimensions_and_nan_are_refused(path):
    assert "the network has 4 features" in refusal(path, replace(WHO, dimension=4))
    sigma = KEPT.vectors.sigma.clone()
    sigma[1, 2] = torch.nan
    write_statistics(path, replace(KEPT, vectors=KEPT.vectors._replace(sigma=sigma)))
    assert "holds NaN or infinity" in refusal(path)


@pytest.mark.parametrize(
    ("features", "said"),
    [
        (torch.full((7, 3), torch.nan), "holds NaN or infinity: compute it again"),
        (torch.rand(7, 4), "holds features of shape (7, 4) in float32, not (7, 3) in floating point"),
        (torch.rand(6, 3), "holds features of shape (6, 3)"),
        (torch.zeros(7, 3, dtype=torch.int64), "holds features of shape (7, 3) in int64, not"),
    ],
)
def test_other_feature_vectors_are_refused(features, said, path):
    write_statistics(path, replace(KEPT, features=features))
    assert said in refusal(path)


def test_what_is_no_covariance_is_refused(path):
    lopsided = torch.eye(3).double()
    lopsided[0, 1] = 0.5
    for sigma in (-torch.eye(3).double(), lopsided):
        write_statistics(path, replace(KEPT, vectors=KEPT.vectors._replace(sigma=sigma)))
        assert "holds a matrix that is no covariance: compute it again" in refusal(path)


def test_half_of_the_spatial_statistics_is_refused(path):
    about = safe_open(path, "pt").metadata()
    tensors = {name: x for name, x in load_file(path).items() if name != "sigma_s"}
    save_file(tensors, path, about)
    assert "a mean of shape (2,) and a covariance of (0,)" in refusal(path)


@pytest.mark.parametrize(
    ("about", "said"),
    [
        (None, "version 1 of feature statistics, not 2"),
        ([1], "version None of feature statistics, not 2"),
        ({"version": 3}, "version 3 of feature statistics, not 2"),
        ({"version": 2, "network": "n", "sha256": WHO.sha256}, "file.images is missing"),
        ({"version": 2, "network": 1, "sha256": WHO.sha256, "images": {}}, "file.network is 1, not str"),
    ],
)
def test_other_headers_are_refused(about, said, path):
    tensors = {"mu": torch.zeros(3), "sigma": torch.eye(3)}
    save_file(tensors, path, None if about is None else {"statistics": json.dumps(about)})
    assert said in refusal(path)


def test_a_file_of_something_else_is_refused():
    with pytest.raises(UserError, match="does not hold feature statistics"):
        read_statistics(BUNDLED / "classifier.safetensors", WHO)


@pytest.mark.parametrize(("name", "number"), [("reference", 338), ("reference_all", 3812)])
def test_the_bundled_statistics_are_of_the_bundled_network(name, number):
    who = load_feature_net(BUNDLED / "classifier.safetensors").identity
    found = read_statistics(BUNDLED / f"{name}.safetensors", who)
    assert (found.images.number, found.vectors.n, found.network) == (number, number, "emoji-classifier")
