"""Windows against `F.unfold`, which forms all columns at once."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from qdiff.windows import Windows

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(3, 2, 9, 12, generator=GENERATOR, dtype=torch.float64)
SETTINGS = [
    ((1, 1), (1, 1), (1, 1)),
    ((3, 3), (1, 1), (1, 1)),
    ((3, 2), (2, 1), (1, 1)),
    ((2, 3), (1, 3), (3, 2)),
    ((1, 1), (2, 3), (1, 1)),
]


def unfolded(kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]) -> Tensor:
    """All windows of X, (N, positions, C, kh, kw)."""
    columns = F.unfold(X, kernel, dilation=dilation, stride=stride)
    return columns.transpose(1, 2).unflatten(2, (2, *kernel))


@pytest.mark.parametrize(("kernel", "stride", "dilation"), SETTINGS)
def test_windows_are_the_columns_of_unfold(kernel, stride, dilation):
    windows, expected = Windows(X, kernel, stride, dilation), unfolded(kernel, stride, dilation)
    height, width = windows.shape
    assert height * width == expected.shape[1]
    samples = torch.tensor([2, 0, 0, 1])
    positions = torch.tensor([0, height * width - 1, 1, width])
    assert torch.equal(windows.at(samples, positions), expected[samples, positions])


@pytest.mark.parametrize("blocks", [1, 2, 4])
@pytest.mark.parametrize(("kernel", "stride", "dilation"), SETTINGS)
def test_means_are_those_of_the_columns_of_each_block(kernel, stride, dilation, blocks):
    """Blocks as `F.adaptive_avg_pool2d` divides the positions, also where they overlap."""
    windows, columns = Windows(X, kernel, stride, dilation), unfolded(kernel, stride, dilation)
    image = columns.flatten(2).transpose(1, 2).unflatten(2, windows.shape)  # (N, K, H, W)
    expected = F.adaptive_avg_pool2d(image, blocks).flatten(2).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(windows.means(blocks).flatten(1), expected, rtol=1e-6, atol=1e-6)


def test_a_row_of_positions_becomes_an_image():
    """Tokens are numbered row by row, so position and mean are those of the image that they came from."""
    image = Windows(X)
    row = Windows(X.flatten(2).unsqueeze(2))
    assert row.shape == (1, 9 * 12)
    reshaped = row.reshaped((9, 12))
    assert reshaped.shape == (9, 12)
    everywhere = torch.arange(9 * 12)
    samples = torch.ones_like(everywhere)
    assert torch.equal(reshaped.at(samples, everywhere), image.at(samples, everywhere))
    assert torch.equal(reshaped.at(samples, everywhere), row.at(samples, everywhere))
    assert torch.equal(reshaped.means(4), image.means(4))
    assert row.reshaped((1, 9 * 12)) is row
