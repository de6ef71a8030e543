"""The ranges of activations, on networks where they are known."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from qdiff.calibration.data import CalibrationSet
from qdiff.calibration.job import calibrate
from qdiff.calibration.settings import CalibrationSettings
from qdiff.errors import UserError
from qdiff.files.journal import Journal
from qdiff.policy import QuantPolicy, QuantSpec
from qdiff.quant_model import QuantModel
from tests.qdiff.calibration.networks import POLICY, linear_toy

W4 = POLICY.weight


def seen_by(model: nn.Module, run: Callable[[], None]) -> list[Tensor]:
    batches = []
    handle = model.register_forward_pre_hook(lambda module, args: batches.append(args[0].clone()))
    run()
    handle.remove()
    return batches


def ranges_only(**changed) -> CalibrationSettings:
    return CalibrationSettings(4, None, None, **changed)


def first_range(model: QuantModel) -> tuple[float, float]:
    quantizer = model.sites()[0].quantizer
    low = -quantizer.zero_point * quantizer.delta
    return low.item(), (low + 255 * quantizer.delta).item()


def test_running_averages_follow_all_data_in_random_order(tmp_path):
    model = linear_toy(POLICY)
    x = torch.linspace(1, -1, 200)[:, None] * torch.tensor([9.0, -5.0, 2.0, 1.0])  # as if grouped by timestep
    data = CalibrationSet((x,))
    batches = seen_by(
        model, lambda: calibrate(model, data, ranges_only(running_stat=True), Journal(tmp_path, {}), memory=0)
    )
    assert [len(b) for b in batches] == [4] * 50
    together = torch.cat(batches)
    assert not torch.equal(together, x)
    assert torch.equal(together.sort(0).values, x.sort(0).values)
    low, high = batches[0].min().item(), batches[0].max().item()
    for batch in batches:
        low, high = 0.95 * low + 0.05 * batch.min().item(), 0.95 * high + 0.05 * batch.max().item()
    assert first_range(model) == pytest.approx((low, high), rel=0.01)
    assert min(-low, high) > 2


def test_ranges_are_searched_on_a_part_of_the_data(tmp_path):
    model = linear_toy(POLICY)
    data = CalibrationSet((torch.randn(300, 4, generator=torch.Generator().manual_seed(0)),))
    batches = seen_by(model, lambda: calibrate(model, data, ranges_only(), Journal(tmp_path, {}), memory=0))
    assert [len(b) for b in batches] == [256]
    assert first_range(model) == pytest.approx((batches[0].min().item(), batches[0].max().item()), rel=0.01)
    with torch.no_grad():
        h = model.model[0](batches[0]).tanh()
    delta = model.sites()[1].quantizer.delta
    assert delta.item() == pytest.approx((h.max() - h.min()).item() / 255), "on inputs that are quantized already"


@pytest.mark.parametrize("search", ["minmax", "mse"])
@pytest.mark.parametrize("running", [False, True])
def test_activations_that_overflow_are_one_line(running, search, tmp_path):
    model = linear_toy(QuantPolicy(W4, QuantSpec(8, range_search=search)), scale=1e30)
    model.model[1] = nn.Identity()
    data = CalibrationSet((torch.full((8, 4), 1e30),))
    with pytest.raises(UserError, match=r"ranges of the activations .*--cali_data_path") as caught:
        calibrate(model, data, ranges_only(running_stat=running), Journal(tmp_path, {}), memory=0)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ranges.safetensors").exists()
