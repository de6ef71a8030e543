"""What the closed form is expected to take: bytes against what it takes, seconds by how they grow."""

import pytest
import torch
from torch import nn

from qdiff.calibration.memory import peak_bytes
from qdiff.calibration.solve_cost import SolveSpeed, solve_bytes
from qdiff.closed_form.layer import solve_layer
from qdiff.closed_form.moments import Moments
from qdiff.policy import QuantSpec
from qdiff.quant_layer import QuantModule, fit_quantizer

W4 = QuantSpec(4, per_channel=True, range_search="minmax")


def layer(fp: nn.Module) -> QuantModule:
    return QuantModule(fp, fit_quantizer(fp.weight, W4, None))


LARGE = nn.Linear(256, 200)


def test_bytes_are_those_of_the_largest_layer():
    small, large = layer(nn.Linear(8, 4)), layer(LARGE)
    assert solve_bytes([small, large], 100) == solve_bytes([large], 100) > solve_bytes([small], 100)


@torch.no_grad()
@pytest.mark.parametrize("columns", [10, 4000])
def test_bytes_are_about_those_that_solving_takes(columns):
    """Moments stay while the layer is solved; columns are gone then, so what is estimated may be too much."""
    module = layer(LARGE)
    x = torch.randn(columns, 256, generator=torch.Generator().manual_seed(0))
    y = nn.functional.linear(x, module.fp_weight)

    def solve() -> None:
        found = Moments(module.fp_weight.T[None].contiguous(), centred=True)
        found.add(x.clone()[None], y.clone()[None], torch.ones(columns), torch.arange(columns) % 256)
        solve_layer(module, found.finish(), mismatch=True)

    taken = peak_bytes(solve)
    assert 0.7 * taken <= solve_bytes([module], columns) <= 2 * taken


def test_seconds_grow_with_what_is_solved():
    speed = SolveSpeed(torch.device("cpu"))
    assert speed.loop > 0 and speed.flop > 0
    speed.loop, speed.flop = 1e-4, 1e-9  # as measured on some machine
    one = layer(nn.Conv2d(8, 16, 3))
    seconds = speed.seconds([one], 1000)
    assert seconds == pytest.approx(72e-4 + 1e-9 * (2 * 1000 * 72 * 52 + 72**3 * 2 / 3 + 6 * 72**2 * 16))
    assert speed.seconds([one, one], 1000) == pytest.approx(2 * seconds)
    grouped = layer(nn.Conv2d(16, 32, 3, groups=2))
    assert speed.seconds([grouped], 1000) == pytest.approx(2 * seconds), "each group is a layer of its own"
    assert speed.seconds([one], 2000) - seconds == pytest.approx(1e-9 * 2 * 1000 * 72 * 52)
    wide = layer(nn.Linear(4, 256))
    assert speed.seconds([wide], 0) > 2 * 4e-4, "twice as many outputs as in the task that was measured"
