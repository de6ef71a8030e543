from dataclasses import replace

import pytest
import torch

from diffusion.samplers import final
from qdiff.adapters.ddim.samplers import DDIM, DDPM, DPMSolver
from qdiff.adapters.ldm import samplers as ldm
from qdiff.correction.parts import PARTS
from qdiff.correction.table import StepCorrection
from tests.qdiff.correction.gaussian import ABAR, SHAPE, noise, predict
from tests.qdiff.correction.tables import make_table

EPS = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(2))


def test_the_formula():
    table = make_table(*PARTS)
    correct = StepCorrection(table, table.timesteps)
    for i, t in enumerate(table.timesteps):
        found, left = correct(i, t, EPS)
        slope, bias = (x[i].float().view(2, 1, 1) for x in (table.slope, table.bias))
        torch.testing.assert_close(found, (EPS - bias) / (1 + slope))
        assert found.dtype == torch.float32
        assert left == pytest.approx(table.std[i].item() / (1 + table.slope[i].mean().item()))


@pytest.mark.parametrize("on", [(), ("slope",), ("bias",), ("variance",), ("slope", "bias")])
def test_parts_that_are_off_do_nothing(on):
    table = make_table(*on)
    slope, bias, left = table.effective
    assert slope.any() == ("slope" in on) and bias.any() == ("bias" in on) and left.any() == ("variance" in on)
    assert table.used == on
    assert make_table(*PARTS).only(on).used == on
    assert table.only(PARTS).used == on


SAMPLERS = [DDIM(3, "uniform", 0.5), DDPM(3), DPMSolver(3), ldm.DDIM(3, 1.0), ldm.PLMS(3), ldm.DPMSolver(3)]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_with_all_parts_off_samples_are_identical(sampler):
    g = torch.Generator()
    x_T = torch.randn(2, *SHAPE, generator=g)

    def exact(x, t):
        return predict(x, t.long())

    times = [step.t for step in sampler.steps(exact, x_T, ABAR, torch.zeros_like)]
    rows = torch.rand(len(times), 2, generator=g, dtype=torch.float64)
    changes = dict.fromkeys(("slope", "slope_error", "bias", "bias_error"), rows)
    changes |= dict.fromkeys(("std", "std_error"), rows[:, 0])
    table = make_table(timesteps=tuple(times), log_snr=tuple(range(len(times))), **changes)

    def sampled(**options):
        source = torch.Generator().manual_seed(3)
        return final(sampler.steps(exact, x_T, ABAR, lambda x: noise(source)(x).to(x), **options))

    assert torch.equal(sampled(), sampled(correct=StepCorrection(table, table.timesteps)))
    on = replace(table, parts=make_table(*PARTS).parts)
    assert not torch.equal(sampled(), sampled(correct=StepCorrection(on, on.timesteps)))


@pytest.mark.parametrize(("index", "t"), [(0, 500), (3, 100), (1, 499.5)])
def test_another_step_is_refused(index, t):
    with pytest.raises(ValueError, match="no step"):
        StepCorrection(make_table(*PARTS), make_table(*PARTS).timesteps)(index, t, EPS)


def test_interpolation_is_linear_over_log_snr():
    table = make_table(*PARTS)
    other = table.at((950, 700, 100, 50), (-5.0, -1.0, 3.0, 4.0))
    torch.testing.assert_close(other.slope[1], 0.25 * table.slope[0] + 0.75 * table.slope[1])
    torch.testing.assert_close(other.std, torch.tensor([0.1, 0.175, 0.4, 0.4]).double())
    assert torch.equal(other.bias[[0, 2, 3]], table.bias[[0, 2, 2]])  # beyond the ends, the values there
    assert torch.equal(table.at(table.timesteps, table.log_snr).bias, table.bias)


def test_interpolation_averages_steps_of_one_noise_level():
    other = make_table(log_snr=(-4.0, 3.0, 3.0)).at((100,), (3.0,))
    assert other.std.item() == pytest.approx(0.3)


@pytest.mark.parametrize(
    "change",
    [
        {"fit": "other"},
        {"timesteps": (1.0,)},
        {"log_snr": (0.0, 1.0, float("nan"))},
        {"slope": torch.zeros(3, 1).double()},
        {"slope": torch.full((3, 2), -1.0).double()},
        {"bias": torch.zeros(3, 2)},
        {"std": -torch.ones(3).double()},
        {"std_error": torch.full((3,), torch.inf).double()},
        {"parts": {}},
    ],
)
def test_impossible_tables_are_refused(change):
    with pytest.raises(ValueError):
        make_table(**change)
