import pytest
import torch

from diffusion.samplers import final
from qdiff.adapters.ddim.samplers import DDIM
from qdiff.correction.parts import PARTS
from qdiff.correction.steps import step_factors
from qdiff.correction.table import StepCorrection
from qdiff.correction.trajectory import TrajectoryFit
from tests.qdiff.correction.gaussian import ABAR, SHAPE, Planted, noise, predict
from tests.qdiff.correction.tables import make_table

N = 40


def start(samples=N, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(samples, *SHAPE, generator=g, dtype=torch.float64), noise(g)


def fit(network, sampler, asked=PARTS):
    factors = step_factors(sampler, ABAR, clipped=True)
    return TrajectoryFit(sampler, ABAR, factors, start, lambda: predict, lambda parts: network).run(asked)


def distance(network, sampler, found) -> float:
    """Mean squared distance of new samples to those of full precision, in relation to that without the correction."""
    times = tuple(float(step.t) for step in sampler.steps(predict, start()[0], ABAR, torch.zeros_like))
    numbers = {name: x for name, x in vars(found).items() if name != "parts"}
    table = make_table(timesteps=times, log_snr=tuple(range(len(times))), parts=found.parts, **numbers)

    def sampled(model, **options):
        x_T, source = start(seed=9)
        return final(sampler.steps(model, x_T, ABAR, source, **options))

    exact = sampled(predict)
    after = sampled(network, correct=StepCorrection(table, table.timesteps))
    return ((after - exact).square().mean() / (sampled(network) - exact).square().mean()).item()


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_an_affine_error_is_undone(eta):
    network, sampler = Planted(0.1, (0.1, -0.05)), DDIM(6, "uniform", eta)
    found = fit(network, sampler)
    assert [found.parts[name].on for name in PARTS] == [True, True, False]
    assert distance(network, sampler, found) < 0.01
    # the first step is at equal states, where it is the paper's regression; the ridge keeps a hundredth of the way to 1
    scale = (1 / 1.1 + 0.01) / 1.01
    torch.testing.assert_close(1 / (1 + found.slope[0]), torch.full((2,), scale).double())


def test_later_steps_make_up_for_errors_before():
    """A network that is off at the first step alone: the second step goes back to the state of full precision."""

    def network(x, t):
        return predict(x, t) + (0.3 if t[0] == 10 else 0)

    found = fit(network, DDIM(6, "uniform", 0.0), asked=("bias",))
    assert found.bias[0].tolist() == pytest.approx([0.3, 0.3])
    assert found.bias[1:].abs().max() < 1e-9  # nothing is left to do

    factors = step_factors(DDIM(6, "uniform", 0.0), ABAR)
    job = TrajectoryFit(DDIM(6, "uniform", 0.0), ABAR, factors, start, lambda: predict, lambda parts: network)
    walk = job._walk(frozenset({"bias"}))
    assert walk.distance.max() < 1e-20


def test_scales_are_limited():
    found = fit(Planted(1.0), DDIM(6, "uniform", 0.0), asked=("slope",))
    assert (1 / (1 + found.slope[0])).tolist() == pytest.approx([0.8, 0.8])
    assert not found.bias.any()


def test_without_an_error_all_is_off():
    found = fit(Planted(), DDIM(6, "uniform", 0.0))
    assert not any(part.on for part in found.parts.values())
    assert not found.slope.any() and not found.bias.any()


def test_an_error_that_is_noise_is_left_alone():
    on = [fit(Planted(std=0.1, generator=torch.Generator().manual_seed(i)), DDIM(6, "uniform", 0.0)) for i in range(8)]
    assert sum(found.parts["bias"].on for found in on) <= 1


def test_a_part_that_is_not_asked_for_is_off():
    found = fit(Planted(0.1, (0.1, -0.05)), DDIM(6, "uniform", 0.0), asked=("slope",))
    assert found.parts["slope"].on and not found.parts["bias"].on
    assert not found.bias.any()


def test_a_repeated_timestep_has_nothing_to_fit():
    found = fit(Planted(0.1, (0.1, -0.05)), DDIM(12, "quad", 0.0))  # begins with t = 0, 0, 0
    assert found.slope.isfinite().all()
    assert not found.slope[-3:-1].any()
