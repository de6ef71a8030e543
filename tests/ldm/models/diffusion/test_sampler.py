"""The samplers by their well-known names, on golden networks and on a model that is a formula."""

import pytest
import torch

from diffusion.dpm_solver import dpm_solver
from diffusion.samplers import final
from ldm.guidance import guided
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.dpm_solver import DPMSolverSampler
from ldm.models.diffusion.plms import PLMSSampler
from ldm.samplers import ddim, latent_timesteps, plms
from tests.diffusion.test_samplers import SAMPLERS, golden_eps, no_noise
from tests.ldm.golden import golden_model
from tests.ldm.test_samplers import abar_of, conditional_eps

X_T, C, UC, ABAR = SAMPLERS["x_T"], SAMPLERS["c"], SAMPLERS["uc"], abar_of("sd")
SHAPE = tuple(X_T.shape[1:])
EVERY = [DDIMSampler, PLMSSampler, DPMSolverSampler]
every_sampler = pytest.mark.parametrize("sampler", EVERY)


class Formula:
    """The predictor behind the golden samples as a latent model, with or without a condition."""

    alphas_cumprod = ABAR

    def __init__(self):
        self.calls = []

    def apply_model(self, x, t, c):
        self.calls.append(len(x))
        return golden_eps(x, t) if c is None else conditional_eps(x, t, c)


def quiet(sampler, S=10, **options):
    return sampler.sample(S, len(X_T), SHAPE, verbose=False, **options)


# --- golden networks


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("ldm_vq_w4a8_sym", "ddim10"),
        ("ldm_kl_w8a8", "ddim10"),
        ("ldm_class_w4a8", "ddim10"),
        ("ldm_class_w4a8", "plms10"),
        ("sd_w4a8_split_sm16", "ddim10"),
        ("sd_w4a8_split_sm16", "plms10"),
    ],
)
def test_samples_of_golden_networks(name, key):
    model, (_, tensors) = golden_model(name)
    sampler = {"ddim10": DDIMSampler, "plms10": PLMSSampler}[key](model)
    guidance = {}
    if "context" in tensors:
        c = tensors["context"]
        guidance = {"conditioning": c, "unconditional_conditioning": c.flip(0), "unconditional_guidance_scale": 3.0}
    x_T = tensors["x_T"]
    with model.ema_scope():
        ours, _ = sampler.sample(10, len(x_T), x_T.shape[1:], x_T=x_T, verbose=False, **guidance)
    assert torch.dist(ours, tensors[key]) <= 1e-5 * tensors[key].norm()


# --- the interface


@pytest.mark.parametrize("condition", [None, C])
def test_classes_are_the_samplers_of_their_names(condition):
    model = guided(Formula().apply_model, condition, UC if condition is not None else None, 3.0)
    tau = latent_timesteps(1000, 10)
    expected = {
        DDIMSampler: ddim(model, X_T, tau, ABAR, eta=0, noise=no_noise),
        PLMSSampler: plms(model, X_T, tau, ABAR),
        DPMSolverSampler: dpm_solver(model, X_T, ABAR, 10, order=2),
    }
    options = {"conditioning": condition, "unconditional_guidance_scale": 3.0, "x_T": X_T}
    if condition is not None:
        options["unconditional_conditioning"] = UC
    for sampler, steps in expected.items():
        ours, _ = quiet(sampler(Formula()), **options)
        assert torch.equal(ours, final(steps)), sampler


def test_options_reach_the_samplers():
    ours, _ = quiet(DDIMSampler(Formula()), x_T=X_T, eta=0.5, noise=torch.ones_like, skip_type="quad")
    tau = latent_timesteps(1000, 10, "quad")
    assert torch.equal(ours, final(ddim(golden_eps, X_T, tau, ABAR, eta=0.5, noise=torch.ones_like)))
    ours, _ = quiet(PLMSSampler(Formula()), x_T=X_T, skip_type="quad")
    assert torch.equal(ours, final(plms(golden_eps, X_T, tau, ABAR)))
    ours, _ = quiet(DPMSolverSampler(Formula()), x_T=X_T, order=3, method="singlestep", skip_type="logSNR")
    assert torch.equal(
        ours, final(dpm_solver(golden_eps, X_T, ABAR, 10, order=3, method="singlestep", skip_type="logSNR"))
    )


@every_sampler
def test_correction_reaches_the_samplers_after_guidance(sampler):
    rows = []

    def correct(index, t, eps):
        rows.append(len(eps))
        return 0 * eps, 0.0

    options = {"conditioning": C, "unconditional_conditioning": UC, "unconditional_guidance_scale": 3.0}
    model = Formula()
    ours, _ = quiet(sampler(model), x_T=X_T, correct=correct, **options)
    assert rows and set(rows) == {2} and set(model.calls) == {4}
    cosine = torch.nn.functional.cosine_similarity(ours.flatten(), X_T.flatten(), dim=0)
    assert cosine == pytest.approx(1, abs=1e-5)  # eps = 0 only scales


@every_sampler
def test_noise_comes_from_the_seed_of_the_sampler(sampler):
    def two(seed):
        ours = sampler(Formula(), seed=seed)
        return [quiet(ours)[1]["x_inter"][0] for _ in range(2)]

    torch.manual_seed(1)
    first, second = two(seed=5)
    torch.manual_seed(2)
    again, _ = two(seed=5)
    other, _ = two(seed=6)
    assert first.shape == X_T.shape and first.dtype == torch.float32
    assert torch.equal(first, again)
    assert not torch.equal(first, second) and not torch.equal(first, other)


def test_noise_that_is_brought_along_is_used_for_all():
    asked = []

    def noise(x):
        asked.append(tuple(x.shape))
        return X_T

    sample, intermediates = quiet(DDIMSampler(Formula()), eta=1.0, noise=noise)
    assert asked == [tuple(X_T.shape)] * 11
    assert intermediates["x_inter"][0] is X_T
    steps = ddim(golden_eps, X_T, latent_timesteps(1000, 10), ABAR, eta=1.0, noise=lambda x: X_T)
    assert torch.equal(sample, final(steps))


@pytest.mark.parametrize(("sampler", "calls"), [(DDIMSampler, 31), (PLMSSampler, 32), (DPMSolverSampler, 30)])
def test_intermediates_are_counted_from_the_end(sampler, calls):
    model = Formula()
    sample, every = quiet(sampler(model), S=30, x_T=X_T, log_every_t=1)
    assert len(model.calls) == calls
    _, some = quiet(sampler(Formula()), S=30, x_T=X_T, log_every_t=10)
    kept = [0, *(i for i in range(1, calls) if (calls - 1 - i) % 10 == 0)]
    for name in ("x_inter", "pred_x0"):
        assert len(every[name]) == 1 + calls and every[name][0] is X_T
        expected = [X_T, *(every[name][1 + i] for i in kept)]
        assert all(torch.equal(a, b) for a, b in zip(some[name], expected, strict=True))
    assert every["x_inter"][-1] is sample
    assert not torch.equal(every["pred_x0"][-1], sample)  # which has the noise of abar_0


@pytest.mark.parametrize("verbose", [True, False])
def test_progress_is_the_caller_s_to_choose(verbose, monkeypatch):
    bars = []

    def bar(steps, total, disable):
        bars.append((total, disable))
        return steps

    monkeypatch.setattr("ldm.models.diffusion.sampler.tqdm", bar)
    PLMSSampler(Formula()).sample(10, len(X_T), SHAPE, x_T=X_T, verbose=verbose)
    assert bars == [(11, None if verbose else True)]


# --- errors


@pytest.mark.parametrize("sampler", [PLMSSampler, DPMSolverSampler])
def test_deterministic_samplers_refuse_eta(sampler):
    with pytest.raises(ValueError, match=r"eta=0\.5 must be 0"):
        quiet(sampler(Formula()), eta=0.5)


@every_sampler
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"S": 0}, "steps=0"),
        ({"x_T": X_T[:1]}, r"x_T has shape \(1, 3, 8, 8\)"),
        ({"conditioning": C[:1]}, r"a condition has \[1\] rows, batch_size is 2"),
        ({"conditioning": {"c_crossattn": [C, C[:1]]}}, r"a condition has \[1, 2\] rows"),
        ({"conditioning": C, "unconditional_conditioning": UC[:1]}, r"a condition has \[1\] rows"),
        (
            {"conditioning": C, "unconditional_conditioning": [UC], "unconditional_guidance_scale": 2.0},
            "differ in shape",
        ),
        ({"skip_type": "cosine"}, "skip_type 'cosine'"),
    ],
)
def test_what_does_not_fit_is_refused(sampler, options, message):
    with pytest.raises(ValueError, match=message):
        quiet(sampler(Formula()), **options)


@every_sampler
def test_an_unknown_option_is_refused(sampler):
    with pytest.raises(TypeError, match="quantize_x0"):
        quiet(sampler(Formula()), quantize_x0=True)
