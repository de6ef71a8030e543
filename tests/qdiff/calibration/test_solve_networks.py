"""Calibration in closed form of layers and blocks of other kinds than those of `test_solve`."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from qdiff.adapters import Adapter
from qdiff.calibration.data import CalibrationSet
from qdiff.errors import UserError
from qdiff.policy import QuantPolicy
from qdiff.quant_model import QuantModel
from tests.qdiff.calibration.test_solve import POLICY, W4, solved
from tests.qdiff.loops import gaussian


def adapter(*blocks: type) -> Adapter:
    return Adapter("toy", blocks=blocks)


class Twice(nn.Module):
    """A block that calls its layer twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.other = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.conv(x))


class Timed(nn.Module):
    """A layer that sees the timestep alone, and one without bias that sees the image."""

    def __init__(self):
        super().__init__()
        self.embedding, self.conv = nn.Linear(2, 4), nn.Conv2d(2, 4, 3, padding=1, bias=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.conv(x) + self.embedding(torch.stack([t.cos(), t.sin()], 1))[:, :, None, None]


def test_a_layer_that_is_called_twice_is_named(tmp_path):
    model = QuantModel(nn.Sequential(Twice()), QuantPolicy(W4), adapter(Twice))
    with pytest.raises(ValueError, match=r"^model\.0\.conv is called 2 times by its block: it must be called once$"):
        solved(model, tmp_path, CalibrationSet((gaussian(8, 2, 4, 4),)), spectrum=None)


def test_a_network_without_timesteps_weighs_all_samples_alike(tmp_path):
    layers = nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)
    model = QuantModel(nn.Sequential(*layers), replace(POLICY, act_rules=()), adapter())
    nearest, x = copy.deepcopy(model), gaussian(40, 4)
    solved(model, tmp_path, CalibrationSet((x,)), spectrum=None)
    with torch.no_grad(), model.full_precision():
        expected = model(x)
    with torch.no_grad():
        assert (model(x) - expected).norm() < (nearest(x) - expected).norm()


@torch.no_grad()
@pytest.mark.parametrize("value", [0.0, 700.0])
def test_data_of_one_timestep_leave_the_embedding_exact(value, tmp_path):
    """The time embedding's input is the same in all samples, so its bias makes up for everything."""
    model = QuantModel(Timed(), QuantPolicy(W4), adapter()).eval()
    samples = CalibrationSet((gaussian(9, 2, 4, 4), torch.full((9,), value)))
    told = solved(model, tmp_path, samples)
    t, layer = torch.tensor(value), model.get_submodule("model.embedding")
    x = torch.stack([t.cos(), t.sin()])[None]
    expected = nn.functional.linear(x, layer.weight, layer.fp_bias)
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)
    assert all(torch.tensor([o.before, o.after]).isfinite().all() for o in told.outcomes)


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_data_that_are_not_finite_are_one_line(value, tmp_path):
    """Without quantized activations, whose ranges would have been refused."""
    x = gaussian(9, 2, 4, 4)
    x[3, 1, 2, 2] = value
    model = QuantModel(Timed(), QuantPolicy(W4), adapter()).eval()
    with pytest.raises(UserError, match=r"model\.conv: .*not finite.*--cali_data_path") as caught:
        solved(model, tmp_path, CalibrationSet((x, torch.arange(9.0))), spectrum=None)
    assert "\n" not in str(caught.value)


class Row(nn.Module):
    """Tokens of an image, with a layer that sees three of them."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(2, 3, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.conv(x.flatten(2)).unflatten(2, x.shape[2:])


def test_a_convolution_along_the_tokens_of_an_image(tmp_path):
    model = QuantModel(Row(), QuantPolicy(W4), adapter()).eval()
    told = solved(model, tmp_path, CalibrationSet((gaussian(9, 2, 4, 4), torch.arange(9.0))))
    assert told.outcomes[0].after < 1.05 * told.outcomes[0].before, "of nine samples, which say little about others"
