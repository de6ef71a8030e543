"""Which columns are drawn, and that their weighted sums are estimates of the squared error's parts."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from qdiff.closed_form.columns import Columns, choose_columns, image_shape
from qdiff.windows import Windows

EVERYTHING = 1e9  # positions per unit of the weight


@pytest.mark.parametrize(
    ("positions", "image", "shape"),
    [
        ((8, 8), (32, 32), (8, 8)),
        ((5, 7), (32, 32), (5, 7)),
        ((1, 64), (32, 32), (8, 8)),
        ((1, 1024), (32, 32), (32, 32)),
        ((1, 6), (8, 12), (2, 3)),
        ((1, 24), (8, 12), (4, 6)),
        ((1, 77), (64, 64), None),
        ((1, 2048), (32, 32), None),  # more tokens than pixels
        ((1, 4), (6, 4), None),  # 6 = 24 / 4 is no square
        ((1, 1), (32, 32), (1, 1)),  # a vector
        ((1, 9), (1, 1), None),
    ],
)
def test_rows_that_are_images(positions, image, shape):
    assert image_shape(positions, image) == shape


def test_a_row_whose_factor_divides_no_side_is_no_image():
    """18 of 8 x 9 pixels would be every second in both directions, and 9 rows do not halve."""
    assert image_shape((1, 18), (8, 9)) is None


def chosen(bands: list[list[float]], share: float, shape: tuple[int, int], image=(8, 8), seed: int = 0) -> Columns:
    generator = torch.Generator().manual_seed(seed)
    return choose_columns(torch.tensor(bands), share, shape, image, generator)


def test_positions_are_drawn_in_proportion_without_repetition():
    found = chosen([[1.0, 4.0, 0.25, 100.0], [0.0] * 4, [0.0] * 4], 5.0, (8, 8))
    assert found.samples.bincount().tolist() == [5, 20, 1, 64], "at least one, at most all"
    for i in range(4):
        positions = found.positions[found.samples == i]
        assert len(positions.unique()) == len(positions) and positions.max() < 64
    assert torch.equal(found.positions[found.samples == 3].sort().values, torch.arange(64))
    # so that every sample has the weight of all its positions
    sums = torch.zeros(4).index_add(0, found.samples, found.weights)
    torch.testing.assert_close(sums, 64 * torch.tensor([1.0, 4.0, 0.25, 100.0]))
    assert found.means == {}


def test_the_draw_is_that_of_the_generator():
    bands = [[1.0, 2.0], [1.0, 1.0], [0.0, 3.0]]
    first, same, other = (chosen(bands, 3.0, (8, 8), seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.positions, same.positions) and not torch.equal(first.positions, other.positions)


def banded_error(e: Tensor, bands: Tensor) -> Tensor:
    """The sum over samples of the three parts of |e|^2, (N, C, H, W); averages stand at each of their pixels."""
    total = (bands[0] * e.square().sum((1, 2, 3))).sum()
    for blocks, weights in ((4, bands[1]), (1, bands[2])):
        each = e.shape[2] * e.shape[3] / blocks**2
        means = F.adaptive_avg_pool2d(e, blocks)
        total = total + (weights * means.square().sum((1, 2, 3))).sum() * each
    return total


E = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(1))
BANDS = [[0.5, 1.0, 2.0], [3.0, 0.0, 1.0], [7.0, 5.0, 0.0]]


def estimate(columns: Columns, windows: Windows) -> Tensor:
    return (columns.of(windows).square().flatten(1).sum(1) * columns.all_weights).sum()


@pytest.mark.parametrize("row", [False, True])
def test_all_columns_give_the_exact_error(row):
    """Also of tokens, which are a row."""
    windows = Windows(E.flatten(2).unsqueeze(2) if row else E)
    found = chosen(BANDS, EVERYTHING, windows.shape)
    assert found.shape == (8, 8) and len(found.all_weights) == 3 * (64 + 16 + 1)
    torch.testing.assert_close(estimate(found, windows), banded_error(E, torch.tensor(BANDS)))


def test_drawn_columns_estimate_it_without_bias():
    windows, bands = Windows(E), torch.tensor([BANDS[0], [0.0] * 3, [0.0] * 3])
    estimates = torch.stack([estimate(chosen(bands.tolist(), 8.0, (8, 8), seed=i), windows) for i in range(400)])
    error = (estimates.mean() - banded_error(E, bands)).abs()
    assert error < 4 * estimates.std() / 400**0.5


@pytest.mark.parametrize("size", [(2, 2), (3, 1), (3, 6)])
def test_where_a_grid_has_no_room_its_weight_goes_to_the_mean(size):
    e = E[:, :, : size[0], : size[1]]
    found = chosen(BANDS, EVERYTHING, size)
    assert list(found.means) == [1]
    bands = torch.tensor([BANDS[0], [0.0] * 3, [a + b for a, b in zip(*BANDS[1:])]])
    torch.testing.assert_close(estimate(found, Windows(e)), banded_error(e, bands))


def test_a_vector_counts_as_the_whole_image():
    found = chosen(BANDS, 100.0, (1, 1))
    assert len(found.samples) == 3
    torch.testing.assert_close(found.all_weights, torch.tensor([0.5, 1.0, 2.0, 10.0, 5.0, 1.0]))
    once = estimate(found, Windows(E[:, :, :1, :1]))
    torch.testing.assert_close(once, (torch.tensor(BANDS).sum(0) * E[:, :, 0, 0].square().sum(1)).sum())


def test_tokens_of_a_text_each_count_as_the_whole_image():
    windows = Windows(E[:, :, 0, :7].unsqueeze(2))
    found = chosen(BANDS, EVERYTHING, (1, 7))
    assert found.shape == (1, 7) and found.means == {}
    expected = (torch.tensor(BANDS).sum(0) * windows.x.square().sum((1, 2, 3))).sum()
    torch.testing.assert_close(estimate(found, windows), expected)


def test_columns_go_to_a_device_whole():
    moved = chosen(BANDS, 3.0, (8, 8)).to(torch.device("meta"))
    tensors = moved.samples, moved.positions, moved.weights, *moved.means.values()
    assert {x.device.type for x in tensors} == {"meta"}
    assert moved.shape == (8, 8) and list(moved.means) == [4, 1]
