import pytest
import torch
from safetensors.torch import load_file

from qdiff.adapters.ddim.samplers import DDIM
from qdiff.correction.moments import Moments
from qdiff.correction.parts import PARTS
from qdiff.correction.predictions import fit_predictions
from qdiff.correction.steps import step_factors
from tests.golden_networks import GOLDEN
from tests.qdiff.correction.gaussian import ABAR, Planted, collected

NOISY = DDIM(6, "uniform", 1.0)
FACTORS = step_factors(NOISY, ABAR)


def fit(planted, *, asked=PARTS, factors=FACTORS, samples=60, seed=0):
    return fit_predictions(
        [collected(NOISY, planted, samples, seed)], [collected(NOISY, planted, samples, seed + 1)], asked, factors
    )


def golden() -> tuple[list[int], Moments, dict[str, torch.Tensor]]:
    vectors = load_file(GOLDEN / "ptqd.safetensors")
    timesteps = sorted(set(vectors["t"].tolist()), reverse=True)
    moments = []
    for t in timesteps:
        eps, error = (vectors[name][vectors["t"] == t].double() for name in ("eps", "quant_error"))
        moments.append(Moments.of(eps, eps + error))
    return timesteps, moments[0].like(torch.stack([m.values for m in moments], 1)), vectors


def test_the_published_statistics():
    timesteps, moments, vectors = golden()
    found = fit_predictions([moments], [moments], PARTS, None)
    for i, t in enumerate(timesteps):
        k = vectors[f"k.{t}"].double()
        torch.testing.assert_close(found.slope[i], k.clamp(min=0).expand(3), rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(found.bias[i], vectors[f"bias.{t}"].double(), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(found.std[i], vectors[f"residual_std.{t}"].double(), rtol=1e-6, atol=0)
    assert min(vectors[f"k.{t}"].item() for t in timesteps) < -0.05  # which counts as 0


def test_samples_may_come_in_any_chunks():
    _, moments, _ = golden()
    whole = fit_predictions([moments], [moments], PARTS, None)
    chunks = [moments.like(x) for x in moments.values.split([1, 4, 5, 2])]
    parts = fit_predictions(chunks, chunks, PARTS, None)
    for name in ("slope", "slope_error", "bias", "bias_error", "std", "std_error"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-9, atol=1e-12)


def test_planted_errors_are_found_within_one_percent():
    found = fit(Planted(0.2, (0.3, 0.28), 0.1), samples=1000)
    torch.testing.assert_close(found.slope, torch.full((6, 2), 0.2).double(), rtol=0.01, atol=0)
    bias = torch.tensor([0.3, 0.28]).double() + 0.2 * eps_means(1000)  # the mean of the whole error
    torch.testing.assert_close(found.bias, bias, rtol=0.01, atol=0)
    torch.testing.assert_close(found.std, torch.full((6,), 0.1).double(), rtol=0.01, atol=0)
    assert all(part.on for part in found.parts.values())


def eps_means(samples: int) -> torch.Tensor:
    return collected(NOISY, Planted(), samples, 0).x.mean(0)


def test_standard_errors_are_those_of_repeated_fits():
    """The samples of a fit are correlated in themselves: one random bias for each."""

    class PerSample(Planted):
        def error(self, eps):
            z = torch.randn(len(eps), 2, 1, 1, generator=self.generator, dtype=torch.float64)
            return super().error(eps) + 0.1 * z + 0.1 * z.mean(1, keepdim=True) * eps

    planted = PerSample(0.1, std=0.05)
    fits = [fit(planted, samples=16, seed=2 * i) for i in range(60)]
    for name in ("slope", "bias", "std"):
        spread = torch.stack([getattr(f, name) for f in fits]).std(0).mean()
        told = torch.stack([getattr(f, f"{name}_error") for f in fits]).mean()
        assert told.item() == pytest.approx(spread.item(), rel=0.15), name


def test_without_an_error_all_is_off():
    found = fit(Planted())
    assert not found.slope.any() and not found.bias.any() and not found.std.any()
    assert not any(part.on for part in found.parts.values())


def test_an_error_that_is_noise_leaves_slope_and_bias_off():
    on = {name: 0 for name in PARTS}
    for seed in range(20):
        for name, part in fit(Planted(std=0.2), samples=16, seed=2 * seed).parts.items():
            on[name] += part.on
    assert on["slope"] + on["bias"] <= 2
    assert on["variance"] == 20


def test_what_is_not_asked_for_is_off():
    found = fit(Planted(0.1, (0.05, -0.08), 0.2), asked=("bias",))
    assert [name for name in PARTS if found.parts[name].on] == ["bias"]
    assert found.std.mean() > 0.2  # the correlated part is left


def test_gains_are_shares_of_the_squared_error():
    found = fit(Planted(0.0, (0.3, 0.3), 0.4), samples=200)
    assert found.parts["bias"].gain == pytest.approx(0.09 / 0.25, rel=0.02)


class Blobs(Planted):
    """Its error is the same in all pixels of a cell."""

    def error(self, eps):
        z = torch.randn(len(eps), 2, 4, 4, generator=self.generator, dtype=torch.float64)
        return eps + self.std * z.repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_only_an_error_like_noise_takes_the_place_of_noise():
    assert fit(Planted(std=0.2)).parts["variance"].gain == pytest.approx(1, abs=0.1)
    blobs = fit(Blobs(std=0.2)).parts["variance"]
    assert not blobs.on and blobs.gain < -0.2


def test_without_noise_there_is_nothing_to_absorb():
    for factors in (None, step_factors(DDIM(6, "uniform", 0.0), ABAR)):
        part = fit(Planted(std=0.2), factors=factors).parts["variance"]
        assert not part.on and "adds no noise" in str(part)
