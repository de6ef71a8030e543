import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from scipy.signal import convolve2d

from qdiff.evaluation.metrics import (
    Moments,
    Statistics,
    frechet_distance,
    mean_absolute_error,
    psnr,
    statistics,
    structural_similarity,
)

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
    assert mean_absolute_error(flat(a), flat(b)).tolist() == [abs(a - b)] * 3
    expected = math.inf if a == b else 20 * math.log10(255 / abs(a - b))
    assert psnr(flat(a), flat(b)).tolist() == pytest.approx([expected] * 3)


def test_each_image_has_its_own_distance():
    reference, images = flat(100), flat(100)
    for i, error in enumerate((1, 10, 100)):
        images[i] += error
    assert psnr(images, reference).tolist() == pytest.approx([20 * math.log10(255) - db for db in (0, 20, 40)])
    assert mean_absolute_error(images, reference).tolist() == pytest.approx([1, 10, 100])


def test_pixel_distances_agree_with_an_independent_computation():
    a, b = noise(0), noise(1)
    x, y = (p.numpy().astype(int) for p in (a, b))
    per_image = [10 * math.log10(255**2 / np.mean((i - j) ** 2)) for i, j in zip(x, y)]
    assert psnr(a, b).tolist() == psnr(b, a).tolist() == pytest.approx(per_image)
    expected = np.abs(x - y).mean((1, 2, 3)).tolist()
    assert mean_absolute_error(a, b).tolist() == mean_absolute_error(b, a).tolist() == pytest.approx(expected)


def ssim_by_definition(x: np.ndarray, y: np.ndarray) -> float:
    """SSIM of one channel, H x W, over the places where the window fits (Wang et al. 2004, equations 6 and 13)."""
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    mean_x, mean_y, xx, yy, xy = (convolve2d(z, window, "valid") for z in (x, y, x * x, y * y, x * y))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    above = (2 * mean_x * mean_y + c1) * (2 * (xy - mean_x * mean_y) + c2)
    below = (mean_x**2 + mean_y**2 + c1) * (xx - mean_x**2 + yy - mean_y**2 + c2)
    return (above / below).mean()


def test_ssim_agrees_with_its_definition():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (2, 3, 15, 19), dtype=np.uint8)
    y = (x * 0.7 + rng.integers(0, 60, x.shape)).astype(np.uint8)
    expected = [np.mean([ssim_by_definition(*map(np.float64, pair)) for pair in zip(a, b)]) for a, b in zip(x, y)]
    assert structural_similarity(*map(torch.from_numpy, (x, y))).tolist() == pytest.approx(expected, abs=1e-9)
    assert structural_similarity(*map(torch.from_numpy, (x, x))).tolist() == pytest.approx([1, 1])
    single = structural_similarity(torch.from_numpy(x[:1]), torch.from_numpy(y[:1]))
    assert single.shape == (1,) and single.item() == pytest.approx(expected[0], abs=1e-9)
    with pytest.raises(ValueError, match="at least 11 x 11"):
        structural_similarity(flat(0), flat(0))


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
    for too_few in (0, 1):
        with pytest.raises(ValueError, match=f"at least 2 feature vectors, not {too_few}"):
            statistics(torch.zeros(too_few, 3))


@given(sizes=st.lists(st.integers(1, 5), min_size=2, max_size=5), offset=st.sampled_from([0.0, 1e6]))
def test_moments_in_batches_are_those_of_the_whole(sizes, offset):
    """Also far from zero, where a difference of sums of squares would lose most digits."""
    x = np.random.default_rng(sum(sizes)).normal(size=(sum(sizes), 4)) + offset
    moments = Moments()
    for batch in torch.from_numpy(x).split(sizes):
        moments.update(batch)
    mu, sigma, n = moments.statistics()
    assert n == len(x)
    np.testing.assert_allclose(mu, x.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(sigma, np.cov(x - offset, rowvar=False), rtol=1e-6, atol=1e-8)


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
