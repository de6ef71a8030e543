"""What quantizing in closed form will take, estimated from the sizes of the layers and the speed of two small tasks."""

import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from qdiff.closed_form.gptq import SWEEPS, Grid, rounded
from qdiff.closed_form.shrinkage import PROBES, UNITS
from qdiff.quant_layer import QuantModule

TOY = 256, 128  # inputs and outputs of the matrix that is rounded to measure the speed
MATRIX = 1024  # size of the product that is measured


def _sizes(layer: QuantModule) -> tuple[int, int, int]:
    """Return K and O of each group, and the number of groups."""
    groups = layer.operation.groups
    return layer.codes[0].numel(), len(layer.codes) // groups, groups


def solve_bytes(layers: Iterable[QuantModule], columns: int) -> int:
    """Return the peak bytes of tensors while the largest of these layers is solved, `columns` of its input included."""
    return max(
        4 * (groups * k * (k + o + 6 * UNITS * PROBES) + 5 * k * k + 8 * k * o + columns * (3 * k + 2 * o))
        for k, o, groups in map(_sizes, layers)
    )


class SolveSpeed:
    """Seconds of solving, measured on a device.

    Args:
        device: where layers are solved.
    """

    def __init__(self, device: torch.device):
        inputs, outputs = TOY
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2 * inputs, inputs, generator=generator).to(device)
        row = torch.ones(1, outputs, device=device)
        toy = x[:inputs, :outputs], x.T @ x, Grid(row, 0 * row, (inputs,), -8, 7)
        self.loop = _seconds(lambda: rounded(*toy, refit=True), x) / inputs
        matrix = torch.ones(MATRIX, MATRIX, device=device)
        self.flop = _seconds(lambda: matrix @ matrix, x) / (2 * MATRIX**3)

    def seconds(self, layers: Iterable[QuantModule], columns: int) -> float:
        """Return the estimated seconds of solving layers, from so many columns of the input of each."""
        return sum(groups * self._layer(k, o, columns) for k, o, groups in map(_sizes, layers))

    def _layer(self, inputs: int, outputs: int, columns: int) -> float:
        moments = 2 * columns * inputs * (inputs / 2 + outputs)
        factors = inputs**3 * 2 / 3  # two Cholesky factors
        products = (2 + 4 * SWEEPS) * inputs**2 * outputs
        loops = self.loop * inputs * max(1.0, outputs / TOY[1])
        return loops + self.flop * (moments + factors + products)


def _seconds(run: Callable[[], object], x: Tensor) -> float:
    """Return the seconds of a task on the device of `x`; a first, unmeasured one prepares kernels."""
    for _ in range(2):
        start = time.perf_counter()
        run()
        if not x.is_cpu:
            torch.accelerator.synchronize(x.device)
    return time.perf_counter() - start
