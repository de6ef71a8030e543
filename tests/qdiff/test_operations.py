"""Operations against the layers of PyTorch: what a position sees, times the weight, is the output there."""

import pytest
import torch
from torch import Tensor, nn

from qdiff.operations import OPERATIONS, Operation

CONVOLUTIONS = {
    "plain": (nn.Conv2d(4, 6, 3), (8, 9)),
    "padded": (nn.Conv2d(4, 6, (3, 1), padding=(1, 2)), (8, 9)),
    "strided": (nn.Conv2d(4, 6, 3, stride=2, padding=1), (8, 8)),
    "two strides": (nn.Conv2d(4, 6, (2, 3), stride=(3, 2), padding=(0, 1)), (8, 9)),
    "dilated": (nn.Conv2d(4, 6, 3, dilation=(2, 1), padding=2), (8, 9)),
    "same": (nn.Conv2d(4, 6, (3, 4), padding="same", dilation=(1, 3)), (8, 9)),
    "valid": (nn.Conv2d(4, 6, 2, padding="valid"), (8, 9)),
    "grouped": (nn.Conv2d(4, 6, 3, padding=1, groups=2), (8, 9)),
    "depthwise": (nn.Conv2d(4, 4, 3, padding=1, groups=4, stride=2), (8, 9)),
    "one position": (nn.Conv2d(4, 6, (8, 9)), (8, 9)),
    "1d": (nn.Conv1d(4, 6, 3, stride=2, padding=2), (11,)),
    "1d same": (nn.Conv1d(4, 6, 4, padding="same", dilation=2), (11,)),
    "1d valid": (nn.Conv1d(4, 6, 2, padding="valid", groups=2), (11,)),
    "1d pointwise": (nn.Conv1d(4, 6, 1), (11,)),
}
LINEARS = {
    "vectors": (nn.Linear(4, 6), (4,)),
    "tokens": (nn.Linear(4, 6, bias=False), (7, 4)),
    "image, channels last": (nn.Linear(4, 6), (5, 3, 4)),
}
CASES = {name: (layer, (4, *size)) for name, (layer, size) in CONVOLUTIONS.items()} | LINEARS


def case(name: str) -> tuple[nn.Module, Operation, Tensor]:
    layer, shape = CASES[name]
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(len(name)))
    return layer, OPERATIONS[type(layer)](layer), x


def by_weight(layer: nn.Module, operation: Operation, columns: Tensor) -> Tensor:
    """Columns (n, C, kh, kw) times the weight of each group, with the bias: (n, O)."""
    x = columns.unflatten(1, (operation.groups, -1)).flatten(2)
    weight = layer.weight.flatten(1).unflatten(0, (operation.groups, -1))
    y = torch.einsum("ngk,gok->ngo", x, weight).flatten(1)
    return y if layer.bias is None else y + layer.bias


@pytest.mark.parametrize("name", CASES)
def test_an_operation_computes_what_its_layer_does(name):
    layer, operation, x = case(name)
    assert torch.equal(operation(x, layer.weight, layer.bias), layer(x))


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_the_weight_times_a_window_is_the_output_there(name):
    layer, operation, x = case(name)
    windows, outputs = operation.windows(x, layer.weight.shape[2:]), operation.positions(layer(x))
    assert windows.shape == outputs.shape
    count = windows.shape[0] * windows.shape[1]
    samples, positions = torch.arange(3).repeat_interleave(count), torch.arange(count).repeat(3)
    y = outputs.at(samples, positions)
    assert y.shape == (3 * count, 6 if name != "depthwise" else 4, 1, 1)
    torch.testing.assert_close(by_weight(layer, operation, windows.at(samples, positions)), y[..., 0, 0])


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_the_weight_times_a_mean_window_is_the_mean_output(name):
    layer, operation, x = case(name)
    windows, outputs = operation.windows(x, layer.weight.shape[2:]), operation.positions(layer(x))
    for blocks in (1, 2):
        y = outputs.means(blocks)[..., 0, 0]
        torch.testing.assert_close(by_weight(layer, operation, windows.means(blocks)), y)
    channels = layer(x) if isinstance(layer, nn.Conv2d | nn.Conv1d) else layer(x).movedim(-1, 1)
    torch.testing.assert_close(outputs.means(1)[..., 0, 0], channels.flatten(2).mean(2) if x.ndim > 2 else layer(x))


def test_positions_are_numbered_row_by_row():
    layer, operation, x = case("padded")
    y = layer(x)
    width = y.shape[3]
    at = operation.positions(y).at(torch.tensor([1]), torch.tensor([2 * width + 3]))
    assert torch.equal(at[0, :, 0, 0], y[1, :, 2, 3])


def test_another_padding_is_refused():
    with pytest.raises(ValueError, match="padding_mode 'reflect' cannot be quantized, only 'zeros'"):
        OPERATIONS[nn.Conv2d](nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"))
