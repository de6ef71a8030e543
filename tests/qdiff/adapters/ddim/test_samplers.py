from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diffusion.dpm_solver import dpm_solver
from diffusion.samplers import ddpm_noisy, generalized, timestep_sequence
from diffusion.steps import check_schedule
from qdiff.adapters.ddim.samplers import DDIM, DDPM, DPMSolver, probe, schedule, to_images
from qdiff.files.images import to_uint8
from tests.tiny import tiny_config, tiny_network


def diffusion():
    return tiny_config().diffusion


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


ABAR = schedule(diffusion())
TAU = timestep_sequence(1000, 6, "quad")
MEANT = [
    (DDIM(6, "quad", 0.3), lambda: generalized(toy, X_T, TAU, ABAR, eta=0.3, noise=noise())),
    (DDPM(6, "quad"), lambda: ddpm_noisy(toy, X_T, TAU, ABAR, noise=noise())),
    (
        DPMSolver(6, 2, "multistep", "quad"),
        lambda: dpm_solver(toy, X_T, ABAR, 6, order=2, method="multistep", skip_type="time_quadratic"),
    ),
]


def run(sampler):
    return list(sampler.steps(toy, X_T, ABAR, noise()))


@pytest.mark.parametrize(("sampler", "meant"), MEANT)
def test_settings_mean_these_samplers(sampler, meant):
    wanted, found = list(meant()), run(sampler)
    assert len(found) == len(wanted) == 6
    assert [step.t for step in found] == [step.t for step in wanted]
    assert all(torch.equal(a.x_prev, b.x_prev) for a, b in zip(found, wanted))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (DDIM(6, "quad", 0.3), DDIM(6, "quad", 0.0)),
        (DDIM(6, "quad", 0.3), DDIM(6, "uniform", 0.3)),
        (DDIM(6, "quad", 1.0), DDPM(6, "quad")),
        (DDPM(6, "quad"), DDPM(6, "uniform")),
        (DPMSolver(6, 2, "multistep", "quad"), DPMSolver(6, 2, "multistep", "uniform")),
        (DPMSolver(6, 2, "multistep", "quad"), DPMSolver(6, 3, "multistep", "quad")),
        (DPMSolver(6, 3, "multistep", "quad"), DPMSolver(6, 3, "singlestep", "quad")),
    ],
)
def test_every_setting_counts(one, other):
    assert not torch.allclose(run(one)[-1].x_prev, run(other)[-1].x_prev, rtol=1e-3)


@pytest.mark.parametrize("sampler", [DDIM, DDPM, DPMSolver])
@pytest.mark.parametrize(("steps", "skip_type"), [(7, "uniform"), (7, "quad"), (300, "uniform"), (1, "uniform")])
def test_nfe_is_the_number_of_network_calls(sampler, steps, skip_type):
    sampler = sampler(steps, skip_type=skip_type)
    assert sampler.nfe(len(ABAR)) == len(run(sampler))


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
        check_schedule(DDIM(1000), schedule(changed))
    check_schedule(DDIM(1000), ABAR)


def test_samplers_as_text():
    assert str(DDIM(50, "quad", 0.5)) == "DDIM(steps=50, skip_type=quad, eta=0.5)"
    assert str(DDPM(6, "uniform")) == "DDPM(steps=6, skip_type=uniform)"
    wanted = "DPMSolver(steps=6, skip_type=quad, order=2, method=multistep)"
    assert str(DPMSolver(6, 2, "multistep", "quad")) == wanted


@pytest.mark.parametrize("sampler", [DDIM(1001), DDPM(1001), pytest.param(DDIM(1001, "quad"), id="quad")])
def test_steps_that_the_schedule_does_not_have(sampler):
    with pytest.raises(ValueError, match=r"1\.\.1000"):
        sampler.nfe(1000)
    with pytest.raises(ValueError, match=r"1\.\.1000"):
        check_schedule(sampler, ABAR)


@pytest.mark.parametrize("kind", [DDIM, DDPM, DPMSolver])
def test_settings_outside_their_range(kind):
    with pytest.raises(ValueError, match="steps must be at least 1, not 0"):
        kind(0)
    with pytest.raises(TypeError, match=r"steps must be a whole number, not 2\.5"):
        kind(2.5)
    with pytest.raises(ValueError, match="skip_type must be one of uniform, quad, not 'cosine'"):
        kind(5, skip_type="cosine")


def test_noise_order_and_method_outside_their_range():
    with pytest.raises(ValueError, match=r"eta must be in 0\.\.1, not 1\.5"):
        DDIM(5, eta=1.5)
    with pytest.raises(ValueError, match=r"order must be in 1\.\.3, not 4"):
        DPMSolver(5, 4)
    with pytest.raises(ValueError, match="method must be one of singlestep, multistep, not 'both'"):
        DPMSolver(5, method="both")
