import pytest
import torch
from torch.nn.functional import avg_pool2d

from qdiff.correction.moments import Moments, mean_of

G = torch.Generator().manual_seed(0)
X, Y = torch.randn(2, 5, 3, 8, 8, generator=G, dtype=torch.float64)
SCALE, SHIFT = torch.rand(3, 1, generator=G, dtype=torch.float64).squeeze(1), torch.tensor([0.1, -0.2, 0.3]).double()


def error() -> torch.Tensor:
    return SCALE.view(3, 1, 1) * Y + SHIFT.view(3, 1, 1) - X


def test_error_of_an_affine_correction():
    found = Moments.of(X, Y).error(SCALE, SHIFT)
    torch.testing.assert_close(found, error().square().flatten(1).mean(1))


def test_bands_are_the_parts_of_the_error():
    bands = Moments.of(X, Y).bands(SCALE, SHIFT)
    cells, whole = avg_pool2d(error(), 2), error().mean((2, 3), keepdim=True)
    within = error() - cells.repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = [part.square().flatten(1).mean(1) for part in (within, cells - whole, whole)]
    torch.testing.assert_close(bands, torch.stack(expected, 1))
    torch.testing.assert_close(bands.sum(1), Moments.of(X, Y).error(SCALE, SHIFT))


def test_white_noise_has_the_bands_of_white_noise():
    z = torch.randn(4000, 3, 8, 8, generator=G)
    m = Moments.of(torch.zeros_like(z), z)
    bands = m.bands(torch.ones(1), torch.zeros(1)).mean(0)
    torch.testing.assert_close(bands, m.white, rtol=0.03, atol=0)
    assert m.white.sum() == 1


@pytest.mark.parametrize("size", [1, 3, 6, 10])
def test_a_grid_divides_every_size(size):
    m = Moments.of(*torch.randn(2, 2, 1, size, size, generator=G))
    assert m.pixels % m.cells == 0
    assert m.white.min() >= 0


@pytest.mark.parametrize("sizes", [[5], [2, 3], [1, 1, 1, 1, 1]])
def test_mean_and_error_do_not_depend_on_the_chunks(sizes):
    found = mean_of((1e6 + X).split(sizes))
    torch.testing.assert_close(found.mean, 1e6 + X.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(found.error, X.std(0) / 5**0.5, rtol=1e-6, atol=0)
