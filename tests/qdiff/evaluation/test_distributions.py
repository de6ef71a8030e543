"""Set measures on features that can be computed by hand; `test_inception.py` compares with torch-fidelity."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from qdiff.evaluation.distributions import Frechet, InceptionScore, KernelDistance, PrecisionRecall, SpatialFrechet
from qdiff.evaluation.measures import Batch, Measure
from qdiff.evaluation.metrics import Statistics
from tests.qdiff.evaluation.networks import MeanColours, drawn_images

IMAGES, REFERENCE = drawn_images(12, 0), drawn_images(9, 1)


def computed(measure: Measure, images: torch.Tensor = IMAGES, size: int = 5) -> tuple[float, ...]:
    for batch in images.split(size):
        measure.update(Batch(batch))
    return measure.compute()


def vectors(images: torch.Tensor) -> np.ndarray:
    return images.double().mean((2, 3)).numpy()


def gaussian(x: np.ndarray) -> Statistics:
    return Statistics(torch.from_numpy(x.mean(0)), torch.from_numpy(np.cov(x.T)), len(x))


def frechet(x: np.ndarray, y: np.ndarray) -> float:
    a, b = np.cov(x.T), np.cov(y.T)
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)


def test_frechet_distance_is_that_of_the_features():
    (found,) = computed(Frechet(MeanColours(), gaussian(vectors(REFERENCE))))
    assert found == pytest.approx(frechet(vectors(IMAGES), vectors(REFERENCE)))


def test_spatial_frechet_distance_is_that_of_the_spatial_features():
    x, y = (images.double().unflatten(2, (2, -1)).mean((1, 3, 4)).numpy() for images in (IMAGES, REFERENCE))
    (found,) = computed(SpatialFrechet(MeanColours(), gaussian(y)))
    assert found == pytest.approx(frechet(x, y)) and found > 1


def test_a_set_with_itself():
    own = torch.from_numpy(vectors(IMAGES))
    assert computed(Frechet(MeanColours(), gaussian(own.numpy())))[0] == pytest.approx(0, abs=1e-6)
    assert computed(PrecisionRecall(MeanColours(), own)) == (1, 1)
    distance, spread = computed(KernelDistance(MeanColours(), own / 100))
    assert spread == pytest.approx(0, abs=1e-3 * abs(distance)), "each subset is the whole set"


def test_kernel_distance_by_definition():
    """The unbiased estimate of MMD^2 with the kernel (x y / D + 1)^3: no term of an image with itself."""
    x, y = vectors(IMAGES[:9]), vectors(REFERENCE)  # equal numbers, so that every subset is the whole
    within = [((z @ z.T / 3 + 1) ** 3) for z in (x, y)]
    n = len(x)
    expected = sum((k.sum() - np.trace(k)) / (n * (n - 1)) for k in within) - 2 * ((x @ y.T / 3 + 1) ** 3).mean()
    found, spread = computed(KernelDistance(MeanColours(), torch.from_numpy(y)), IMAGES[:9])
    assert found == pytest.approx(expected, rel=1e-3)
    assert spread < 1e-2 * abs(expected)


def test_precision_and_recall_by_definition():
    x, y = vectors(IMAGES), vectors(REFERENCE)

    def covered(points: np.ndarray, centres: np.ndarray) -> float:
        distances = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
        radii = np.sort(distances, 1)[:, 3]  # 0 is the centre itself
        return float((np.linalg.norm(points[:, None] - centres[None], axis=-1) <= radii).any(1).mean())

    found = computed(PrecisionRecall(MeanColours(), torch.from_numpy(y)))
    assert found == pytest.approx((covered(x, y), covered(y, x)))
    assert 0 < min(found) < 1


def test_the_score_of_images_of_two_classes():
    """Between 1, for images of one class, and the number of classes, for sure and evenly distributed ones."""
    dark, light = torch.zeros(100, 3, 8, 8, dtype=torch.uint8), torch.full((100, 3, 8, 8), 255, dtype=torch.uint8)
    assert computed(InceptionScore(MeanColours()), dark) == pytest.approx((1, 0), abs=1e-6)
    score, spread = computed(InceptionScore(MeanColours()), torch.cat([dark, light]))
    assert 1.9 < score < 2 and 0 < spread < 0.1, "the ten parts are drawn, so not all are half dark"
