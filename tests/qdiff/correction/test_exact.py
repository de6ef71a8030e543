"""A corrected sampler has the mean and the variance of full precision, which a Gaussian model has in closed form."""

import pytest
import torch

from diffusion.samplers import final
from qdiff.adapters.ddim.samplers import DDIM
from qdiff.correction.parts import PARTS
from qdiff.correction.predictions import fit_predictions
from qdiff.correction.steps import step_factors
from qdiff.correction.table import StepCorrection
from tests.qdiff.correction.gaussian import ABAR, SHAPE, Planted, collected, final_moments, noise
from tests.qdiff.correction.tables import make_table

SAMPLES = 3000
PLANTED = {"k": 0.15, "bias": (0.2, 0.2), "std": 0.3}


def corrected_moments(eta: float, parts) -> tuple[float, float]:
    sampler = DDIM(6, "uniform", eta)
    network = Planted(**PLANTED)
    moments = [collected(sampler, network, 600, seed) for seed in (0, 1)]
    found = fit_predictions([moments[0]], [moments[1]], parts, step_factors(sampler, ABAR))
    assert {name for name in PARTS if found.parts[name].on} == set(parts) - ({"variance"} if eta == 0 else set())
    numbers = {name: x for name, x in vars(found).items() if name != "parts"}
    times = tuple(float(t) for t in range(10, -1, -2))
    table = make_table(timesteps=times, log_snr=tuple(range(6)), parts=found.parts, **numbers)
    generator = torch.Generator().manual_seed(4)
    x_T = torch.randn(SAMPLES, *SHAPE, generator=generator, dtype=torch.float64)
    # the last step adds no noise, so that nothing absorbs its error: the state before it is compared
    *_, before, _ = sampler.steps(network, x_T, ABAR, noise(generator), correct=StepCorrection(table, table.timesteps))
    return before.x_prev.mean().item(), before.x_prev.var().item()


def exact_moments(eta: float) -> tuple[float, float]:
    factors = step_factors(DDIM(6, "uniform", eta), ABAR)
    cut = type(factors)(factors.a[:-1], factors.c[:-1], factors.sigma[:-1])
    return final_moments(cut, list(range(10, -1, -2)))


def test_with_all_parts_mean_and_variance_are_exact():
    mean, variance = corrected_moments(1.0, PARTS)
    exact = exact_moments(1.0)
    assert mean == pytest.approx(exact[0], rel=0.01)
    assert variance == pytest.approx(exact[1], rel=0.01)


@pytest.mark.parametrize("part", PARTS)
def test_every_part_is_needed(part):
    parts = tuple(name for name in PARTS if name != part)
    mean, variance = corrected_moments(1.0, parts)
    exact = exact_moments(1.0)
    off = abs(mean / exact[0] - 1), abs(variance / exact[1] - 1)
    assert max(off) > 0.03


def test_the_mean_does_not_depend_on_the_variance_that_is_left_out():
    """The published code computes the direction to x_t from the reduced variance, which moves the mean."""
    means = [corrected_moments(1.0, parts)[0] for parts in (PARTS, ("slope", "bias"))]
    assert means[0] == pytest.approx(means[1], abs=0.003)


def test_without_noise_nothing_absorbs_the_variance():
    """As published, bias is the mean of the whole error, so that a mean of eps that is not 0 is corrected twice."""
    mean, variance = corrected_moments(0.0, PARTS)
    exact = exact_moments(0.0)
    assert mean == pytest.approx(exact[0], rel=0.05)
    assert variance > 1.05 * exact[1]


def test_the_exact_sampler_has_the_closed_form():
    sampler, generator = DDIM(6, "uniform", 1.0), torch.Generator().manual_seed(4)
    x_T = torch.randn(SAMPLES, *SHAPE, generator=generator, dtype=torch.float64)
    x = final(sampler.steps(Planted(), x_T, ABAR, noise(generator)))
    mean, variance = final_moments(step_factors(sampler, ABAR), list(range(10, -1, -2)))
    assert x.mean().item() == pytest.approx(mean, rel=0.01)
    assert x.var().item() == pytest.approx(variance, rel=0.01)
