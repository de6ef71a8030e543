"""Measures of images in batches, and what their columns are called."""

import math

import pytest
import torch

from qdiff.evaluation.distributions import Frechet
from qdiff.evaluation.feature_network import Identity
from qdiff.evaluation.measures import Batch, Metric
from qdiff.evaluation.metrics import Statistics, frechet_distance, statistics
from qdiff.evaluation.paired import PSNR, Recognised, distance_to_fp, psnr_to_fp
from tests.qdiff.evaluation.networks import MeanColours, drawn_images

WHITE = torch.full((2, 3, 4, 4), 255, dtype=torch.uint8)
IMAGES = torch.cat([WHITE[:1], WHITE[:1] - 51])
TRAINING = Statistics(torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64), 9)


NAMES = ("dark", "bright")


def measured(network: MeanColours, *batches: Batch) -> dict[str, float]:
    """Values of all measures that see single images, by key."""
    measures = [psnr_to_fp(), distance_to_fp(), Frechet(network, TRAINING), Recognised(network)]
    for batch in batches:
        for measure in measures:
            measure.update(batch)
    return {metric.key: x for measure in measures for metric, x in zip(measure.metrics, measure.compute())}


@pytest.fixture
def network() -> MeanColours:
    return MeanColours(categories=NAMES)


def test_values_of_images_in_memory(network):
    images = torch.full((2, 3, 4, 4), 51, dtype=torch.uint8)
    values = measured(network, Batch(images, WHITE, ["dark", "bright"]))
    assert list(values) == ["psnr", "mae", "frechet", "recognised"]
    assert values["psnr"] == pytest.approx(20 * math.log10(255 / 204)) and values["mae"] == 204
    assert values["frechet"] == pytest.approx(3 * 51**2 + 3), "no variance, so only means and the trace remain"
    assert values["recognised"] == 0.5


@pytest.mark.parametrize("sizes", [[7], [1] * 7, [4, 3]])
def test_batches_do_not_matter(sizes, network):
    images, fp, labels = drawn_images(7, 0), drawn_images(7, 1), [NAMES[i % 2] for i in range(7)]
    whole, start, parts = measured(network, Batch(images, fp, labels)), 0, []
    for size in sizes:
        part = slice(start, start := start + size)
        parts.append(Batch(images[part], fp[part], labels[part]))
    assert measured(network, *parts) == pytest.approx(whole)


def test_features_are_computed_once_for_all_measures(network):
    measured(network, Batch(IMAGES, WHITE, ["bright", "bright"]))
    assert network.calls == 1


def test_grey_images_are_shown_as_rgb(network):
    grey = drawn_images(5, 0)[:, :1]
    expected = frechet_distance(statistics(grey.double().mean((2, 3)).expand(-1, 3)), TRAINING)
    assert measured(network, Batch(grey, grey, ["dark"] * 5))["frechet"] == pytest.approx(expected)


def test_categories_are_recognised_by_name_and_not_by_number(network):
    black = Batch(torch.zeros_like(WHITE), WHITE, ["dark", "dark"])
    assert measured(network, black)["recognised"] == 1
    assert measured(MeanColours(categories=NAMES[::-1]), black)["recognised"] == 0
    with pytest.raises(ValueError, match="longer"):
        measured(network, Batch(WHITE, WHITE, ["dark"] * 3))


@pytest.mark.parametrize(
    ("standard", "count", "key", "name"),
    [
        (True, 50_000, "fid", "FID"),
        (True, 49_999, "fid", "FID, 49,999 images"),
        (True, 2_049, "fid", "FID, 2,049 images"),
        (True, 2_048, "frechet", "FD on Inception features (not FID), 2,048 images"),
        (False, 50_000, "frechet", "FD on Inception features (not FID)"),
        (False, 64, "frechet", "FD on Inception features (not FID), 64 images"),
    ],
)
def test_only_enough_images_on_the_right_network_are_called_fid(standard, count, key, name):
    (metric,) = Frechet.columns(Identity("Inception", "a", 2048, 1008, 2023, standard))
    assert (metric.of(count).key, metric.of(count).name) == (key, name)


def test_a_metric_that_needs_no_number_keeps_its_name():
    assert PSNR.of(1) == PSNR
    assert Metric("a", "A", "", "", least=5).of(4).name == "A, 4 images"
