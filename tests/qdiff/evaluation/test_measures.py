"""Entries of tables: what they compute from images in memory, and how values are shown."""

import math

import pytest
import torch
from qdiff.evaluation.registry import MAE, PSNR, Samples, evaluate, frechet, recognised

from qdiff.evaluation.metrics import Statistics, frechet_distance, statistics

WHITE = torch.full((2, 3, 4, 4), 255, dtype=torch.uint8)
IMAGES = torch.cat([WHITE[:1], WHITE[:1] - 51])


class MeanColours:
    """Features are the mean colours of an image; its class is 1 if it is dark."""

    frechet_name = "FD on mean colours"
    frechet_meaning = "distance of colours"

    def features(self, images):
        return images.double().mean((2, 3))

    def recognised(self, images, labels):
        return ((self.features(images).mean(1) < 230) == labels).double().mean().item()


NETWORK = MeanColours()
TRAINING = Statistics(torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64), 9)
ALL = [PSNR, MAE, frechet(NETWORK, TRAINING), recognised(NETWORK)]


def test_values_of_images_in_memory():
    values = evaluate(ALL, Samples(IMAGES[[1, 1]], WHITE, torch.tensor([1, 0])))
    assert list(values) == ["psnr", "mae", "frechet", "recognised"]
    assert values["psnr"] == pytest.approx(20 * math.log10(5)) and values["mae"] == 51
    assert values["frechet"] == pytest.approx(3 * 204**2 + 3), "no variance, so only means and the trace remain"
    assert values["recognised"] == 0.5


def test_frechet_distance_is_that_of_the_features():
    mixed = torch.randint(256, (5, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = frechet_distance(statistics(NETWORK.features(mixed)), TRAINING)
    assert evaluate(ALL[2:3], Samples(mixed)) == {"frechet": expected}


def test_a_metric_without_its_input_does_not_apply():
    values = evaluate(ALL, Samples(IMAGES))
    assert (values["psnr"], values["mae"], values["recognised"]) == (None, None, None)
    assert values["frechet"] is not None
    values = evaluate(ALL, Samples(IMAGES, WHITE))
    assert values["recognised"] is None and values["mae"] == 25.5
    values = evaluate(ALL, Samples(IMAGES, labels=torch.tensor([0, 1])))
    assert values["recognised"] == 1 and values["psnr"] is None


def test_the_column_of_the_frechet_distance_has_the_name_of_its_network():
    assert ALL[2].title == "FD on mean colours" and ALL[2].meaning == "distance of colours"


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        (PSNR, 23.456, "23.46"),
        (PSNR, math.inf, "∞"),
        (PSNR, None, "-"),
        (ALL[3], 0.254, "25%"),
        (ALL[3], 1.0, "100%"),
    ],
)
def test_cells(metric, value, text):
    assert metric.cell(value) == text


def test_titles_name_the_unit():
    assert PSNR.title == "PSNR to FP [dB]" and MAE.title == "distance to FP"
