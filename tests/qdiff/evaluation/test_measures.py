"""Measures of images in batches, and what their columns are called."""

import math

import pytest
import torch

from qdiff.evaluation.distributions import Frechet
from qdiff.evaluation.feature_network import Identity
from qdiff.evaluation.measures import Batch, Metric, measured
from qdiff.evaluation.metrics import Statistics, frechet_distance, statistics
from qdiff.evaluation.paired import MAE, PSNR, RECOGNISED, Recognised, distance_to_fp, psnr_to_fp
from tests.qdiff.evaluation.networks import MeanColours, drawn_images

WHITE = torch.full((2, 3, 4, 4), 255, dtype=torch.uint8)
IMAGES = torch.cat([WHITE[:1], WHITE[:1] - 51])
TRAINING = Statistics(torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64), 9)


def all_measures(network: MeanColours) -> list:
    return [psnr_to_fp(), distance_to_fp(), Frechet(network, TRAINING), Recognised(network)]


def test_values_of_images_in_memory():
    images = torch.full((2, 3, 4, 4), 51, dtype=torch.uint8)
    values = measured(all_measures(MeanColours()), [Batch(images, WHITE, torch.tensor([0, 1]))])
    assert list(values) == ["psnr", "mae", "frechet", "recognised"]
    assert values["psnr"] == pytest.approx(20 * math.log10(255 / 204)) and values["mae"] == 204
    assert values["frechet"] == pytest.approx(3 * 51**2 + 3), "no variance, so only means and the trace remain"
    assert values["recognised"] == 0.5


@pytest.mark.parametrize("sizes", [[7], [1] * 7, [4, 3]])
def test_batches_do_not_matter(sizes):
    images, fp, labels = drawn_images(7, 0), drawn_images(7, 1), torch.arange(7) % 2
    whole = measured(all_measures(MeanColours()), [Batch(images, fp, labels)])
    parts = zip(images.split(sizes), fp.split(sizes), labels.split(sizes))
    assert measured(all_measures(MeanColours()), [Batch(*part) for part in parts]) == pytest.approx(whole)


def test_features_are_computed_once_for_all_measures():
    network = MeanColours()
    measured(all_measures(network), [Batch(IMAGES, WHITE, torch.tensor([0, 1]))])
    assert network.calls == 1


def test_grey_images_are_shown_as_rgb():
    grey = drawn_images(5, 0)[:, :1]
    expected = frechet_distance(statistics(grey.double().mean((2, 3)).expand(-1, 3)), TRAINING)
    assert measured([Frechet(MeanColours(), TRAINING)], [Batch(grey)]) == {"frechet": pytest.approx(expected)}


def test_a_measure_without_its_input_does_not_apply():
    values = measured(all_measures(MeanColours()), [Batch(IMAGES)])
    assert (values["psnr"], values["mae"], values["recognised"]) == (None, None, None)
    assert values["frechet"] is not None
    values = measured(all_measures(MeanColours()), [Batch(IMAGES, WHITE)])
    assert values["recognised"] is None and values["mae"] == 25.5
    values = measured(all_measures(MeanColours()), [Batch(IMAGES, labels=torch.tensor([1, 1]))])
    assert values["recognised"] == 1 and values["psnr"] is None


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        (PSNR, 23.456, "23.46"),
        (PSNR, math.inf, "∞"),
        (PSNR, None, "-"),
        (RECOGNISED, 0.254, "25%"),
        (RECOGNISED, 1.0, "100%"),
    ],
)
def test_cells(metric, value, text):
    assert metric.cell(value) == text


def test_titles_name_the_unit():
    assert PSNR.title == "PSNR to FP [dB]" and MAE.title == "distance to FP"


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
