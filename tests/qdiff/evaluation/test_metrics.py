import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from qdiff.evaluation.metrics import Statistics, frechet_distance, mean_absolute_error, psnr, statistics

SHAPE = (3, 3, 4, 5)


def flat(level: int) -> torch.Tensor:
    return torch.full(SHAPE, level, dtype=torch.uint8)


def noise(seed: int) -> torch.Tensor:
    return torch.randint(256, SHAPE, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def gaussian(mu, sigma) -> Statistics:
    return Statistics(torch.tensor(mu, dtype=torch.float64), torch.tensor(sigma, dtype=torch.float64), 2)


@given(a=st.integers(0, 255), b=st.integers(0, 255))
def test_flat_images_have_closed_forms(a, b):
    """Also the differences that 8 bits without a sign cannot hold."""
    assert mean_absolute_error(flat(a), flat(b)) == abs(a - b)
    expected = math.inf if a == b else 20 * math.log10(255 / abs(a - b))
    assert psnr(flat(a), flat(b)) == pytest.approx(expected)


def test_psnr_is_averaged_over_images_in_db():
    reference, images = flat(100), flat(100)
    for i, error in enumerate((1, 10, 100)):
        images[i] += error
    assert psnr(images, reference) == pytest.approx(20 * math.log10(255) - 20)  # errors of 0, 20 and 40 dB
    assert mean_absolute_error(images, reference) == pytest.approx(37)


def test_pixel_distances_agree_with_an_independent_computation():
    a, b = noise(0), noise(1)
    x, y = (p.numpy().astype(int) for p in (a, b))
    per_image = [10 * math.log10(255**2 / np.mean((i - j) ** 2)) for i, j in zip(x, y)]
    assert psnr(a, b) == psnr(b, a) == pytest.approx(np.mean(per_image))
    assert mean_absolute_error(a, b) == mean_absolute_error(b, a) == pytest.approx(np.abs(x - y).mean())


@pytest.mark.parametrize("distance", [psnr, mean_absolute_error])
def test_other_tensors_are_refused(distance):
    with pytest.raises(ValueError, match="uint8"):
        distance(flat(0).float(), flat(0))
    with pytest.raises(ValueError, match="uint8"):
        distance(flat(0)[:0], flat(0)[:0])
    with pytest.raises(ValueError, match="shapes differ"):
        distance(flat(0)[:1], flat(0))


def test_statistics_of_known_vectors():
    mu, sigma, n = statistics(torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 4.0], [2.0, 4.0]]))
    assert (mu.tolist(), n) == ([1, 2], 4)
    torch.testing.assert_close(sigma, torch.tensor([[4 / 3, 0], [0, 16 / 3]], dtype=torch.float64))
    assert statistics(torch.tensor([[1.0], [3.0]])).sigma.tolist() == [[2]]
    with pytest.raises(ValueError, match="at least 2"):
        statistics(torch.zeros(1, 3))


@given(
    means=st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=1, max_size=4),
    deviations=st.lists(st.tuples(st.floats(0.01, 9), st.floats(0.01, 9)), min_size=4, max_size=4),
)
def test_frechet_distance_of_independent_features(means, deviations):
    """Of Gaussians with diagonal covariances it is the squared distance of means and of standard deviations."""
    deviations = deviations[: len(means)]
    a, b = (gaussian([m[i] for m in means], np.diag([s[i] ** 2 for s in deviations])) for i in (0, 1))
    expected = sum((m[0] - m[1]) ** 2 + (s[0] - s[1]) ** 2 for m, s in zip(means, deviations))
    assert frechet_distance(a, b) == pytest.approx(expected, abs=1e-6)


def test_frechet_distance_with_correlations():
    rng = np.random.default_rng(0)
    x, y = (torch.from_numpy(rng.normal(size=(50, 6)) @ rng.normal(size=(6, 6)) + rng.normal(size=6)) for _ in range(2))
    a, b = np.cov(x.T), np.cov(y.T)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert frechet_distance(statistics(x), statistics(y)) == pytest.approx(expected.item())
    assert frechet_distance(statistics(x), statistics(x)) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_of_fewer_vectors_than_dimensions():
    """Singular covariances, whose square root an eigenvalue below zero by rounding must not spoil."""
    x = torch.from_numpy(np.random.default_rng(1).normal(size=(5, 20)))
    assert frechet_distance(statistics(x), statistics(x + 3)) == pytest.approx(20 * 9, abs=1e-4)
