import numpy as np
import pytest
import torch

from ddim.samplers import ddpm_noisy, dpm_solver, final, generalized, timestep_sequence
from qdiff.adapters.ddim_sampling import PixelSampler, schedule
from tests.tiny import tiny_config

SETTINGS = {"skip_type": "quad", "eta": 0.3, "dpm_order": 2, "dpm_method": "multistep"}


def diffusion():
    return tiny_config().diffusion


def sampler(sample_type: str, timesteps: int = 6, **changed) -> PixelSampler:
    return PixelSampler(diffusion(), sample_type, timesteps, **(SETTINGS | changed))


def toy(x, t):
    return 0.3 * x.tanh() + 1e-4 * t.float()[:, None]


def noise():
    generator = torch.Generator().manual_seed(1)
    return lambda x: torch.randn(x.shape, generator=generator)


X_T = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))


def test_schedule_of_a_configuration():
    d = diffusion()
    expected = np.cumprod(1 - np.linspace(d.beta_start, d.beta_end, d.num_diffusion_timesteps))
    np.testing.assert_allclose(schedule(d), expected, rtol=1e-12)
    assert schedule(d).dtype == torch.float64


EXPECTED = {
    "generalized": lambda abar, tau: generalized(toy, X_T, tau, abar, eta=0.3, noise=noise()),
    "ddpm_noisy": lambda abar, tau: ddpm_noisy(toy, X_T, tau, abar, noise=noise()),
    "dpm_solver": lambda abar, tau: dpm_solver(
        toy, X_T, abar, 6, order=2, method="multistep", skip_type="time_quadratic"
    ),
}


@pytest.mark.parametrize("sample_type", EXPECTED)
def test_names_of_the_command_line_mean_these_samplers(sample_type):
    wanted = list(EXPECTED[sample_type](schedule(diffusion()), timestep_sequence(1000, 6, "quad")))
    found = list(sampler(sample_type).steps(toy, X_T, noise()))
    assert len(found) == len(wanted) == 6
    assert [step.t for step in found] == [step.t for step in wanted]
    assert all(torch.equal(a.x_prev, b.x_prev) for a, b in zip(found, wanted))
    results = [final(sampler(other).steps(toy, X_T, noise())) for other in EXPECTED]
    assert sum(torch.equal(found[-1].x_prev, x) for x in results) == 1


@pytest.mark.parametrize(
    ("sample_type", "changed"),
    [
        ("generalized", {"eta": 0.0}),
        ("generalized", {"skip_type": "uniform"}),
        ("ddpm_noisy", {"skip_type": "uniform"}),
        ("dpm_solver", {"skip_type": "uniform"}),
        ("dpm_solver", {"dpm_order": 3}),
        ("dpm_solver", {"dpm_order": 3, "dpm_method": "singlestep"}),
    ],
)
def test_every_setting_counts(sample_type, changed):
    one, other = (final(sampler(sample_type, **c).steps(toy, X_T, noise())) for c in ({}, changed))
    assert not torch.allclose(one, other, rtol=1e-3)


@pytest.mark.parametrize("sample_type", EXPECTED)
@pytest.mark.parametrize(("timesteps", "skip_type"), [(7, "uniform"), (7, "quad"), (300, "uniform"), (1, "uniform")])
def test_length_is_the_number_of_network_calls(sample_type, timesteps, skip_type):
    calls = []

    def counted(x, t):
        calls.append(t)
        return toy(x, t)

    s = sampler(sample_type, timesteps, skip_type=skip_type)
    final(s.steps(counted, X_T, noise()))
    assert len(s) == len(calls)


def test_more_steps_than_the_schedule_has():
    with pytest.raises(ValueError, match=r"1\.\.1000"):
        len(sampler("generalized", 1001))
