from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diffusion.samplers import ddpm_noisy, dpm_solver, final, generalized, timestep_sequence
from qdiff.adapters.ddim.samplers import PixelSampler, probe, schedule, to_images
from qdiff.files.images import to_uint8
from tests.tiny import tiny_config, tiny_network

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


@pytest.mark.parametrize(("rescaled", "logit"), [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("uniform", [False, True])
def test_pixels_come_back_as_the_training_took_them(rescaled, logit, uniform):
    """All 256 levels, through what the published code does to pixels in training."""
    pixels = torch.arange(256).view(1, 1, 16, 16)
    v = pixels.double() / 255
    if uniform:
        u = torch.rand(v.shape, dtype=v.dtype, generator=torch.Generator().manual_seed(0))
        v = v * 255 / 256 + u / 256
    v = v.clamp(1e-6, 1 - 1e-6) if logit else v
    x = 2 * v - 1 if rescaled else v.logit() if logit else v
    data = SimpleNamespace(rescaled=rescaled, logit_transform=logit, uniform_dequantization=uniform)
    assert torch.equal(to_uint8(to_images(x.float(), data)).long(), pixels)


def test_images_of_published_models_are_the_samplers_own_numbers():
    x = torch.tensor([-1.7, -1.0, 0.3, 1.0, 40.0])
    data = SimpleNamespace(rescaled=True, logit_transform=False, uniform_dequantization=False)
    assert torch.equal(to_images(x, data), x)


@pytest.mark.parametrize(("rescaled", "logit", "uniform"), [(False, True, False), (True, False, True)])
def test_an_overflow_is_not_hidden(rescaled, logit, uniform):
    data = SimpleNamespace(rescaled=rescaled, logit_transform=logit, uniform_dequantization=uniform)
    x = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0])
    assert to_images(x, data).isfinite().tolist() == [False, False, False, True]


def test_a_network_for_other_images_is_refused():
    probe(tiny_network(), tiny_config().data)
    with pytest.raises(ValueError, match="images are"):
        probe(tiny_network(), SimpleNamespace(channels=1, image_size=8))


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"beta_schedule": "cubic"}, "is unknown"),
        ({"beta_end": 2.0}, "must lie in"),
        ({"beta_schedule": "jsd"}, "strictly within"),
    ],
)
def test_a_schedule_that_cannot_be_sampled_is_known_before_any_work(section, said):
    changed = diffusion()
    changed.update(section)
    with pytest.raises(ValueError, match=said):
        PixelSampler(changed, "generalized", 1000, **(SETTINGS | {"skip_type": "uniform"})).check()
    sampler("generalized").check()


def test_samplers_as_text():
    assert str(sampler("generalized")) == "DDIM(steps=6, skip_type=quad, eta=0.3)"
    assert str(sampler("dpm_solver")) == "DPMSolver(steps=6, skip_type=quad, order=2, method=multistep)"


def test_more_steps_than_the_schedule_has():
    with pytest.raises(ValueError, match=r"1\.\.1000"):
        len(sampler("generalized", 1001))
