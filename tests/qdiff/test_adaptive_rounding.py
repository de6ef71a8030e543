"""Learned rounding against the published numbers, closed forms and an optimisation with a known result."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import load_file
from torch import Tensor

from qdiff.adaptive_rounding import AdaRoundQuantizer, beta_at, rate_for, rectified_sigmoid
from qdiff.policy import QuantSpec
from qdiff.quant_layer import SplitQuantizer, UniformAffineQuantizer
from tests.golden_networks import GOLDEN

VECTORS = load_file(GOLDEN / "quantizers.safetensors")
CASES = [(name, bits) for name in ("weight2d", "weight4d") for bits in (2, 4, 8)]
WEIGHTS = hnp.arrays("float32", (3, 6), elements=st.floats(-4, 4, width=32)).map(torch.from_numpy)
ALPHAS = hnp.arrays("float32", (3, 6), elements=st.floats(-20, 20, width=32)).map(torch.from_numpy)
SPECS = st.builds(
    QuantSpec, st.integers(2, 8), st.booleans(), st.just(True), st.sampled_from(["minmax", "mse", "max_scale"])
)


def published(name: str, bits: int) -> dict[str, Tensor]:
    prefix = f"adaround.{name}.{bits}."
    return {key.removeprefix(prefix): x for key, x in VECTORS.items() if key.startswith(prefix)}


def rounding(name: str, bits: int, alpha: str | None = None) -> tuple[AdaRoundQuantizer, Tensor, dict[str, Tensor]]:
    weight, golden = VECTORS[f"input.{name}"], published(name, bits)
    quantizer = UniformAffineQuantizer(golden["delta"], golden["zero_point"], QuantSpec(bits, per_channel=True))
    return AdaRoundQuantizer(quantizer, weight, golden.get(alpha)), weight, golden


@pytest.mark.parametrize(("name", "bits"), CASES)
def test_published_start(name, bits):
    learned, weight, golden = rounding(name, bits)
    torch.testing.assert_close(learned.alpha.detach(), golden["alpha_init"], rtol=1e-5, atol=1e-6)
    assert torch.equal(learned.eval()(weight), golden["hard_init"])


@pytest.mark.parametrize(("name", "bits"), CASES)
def test_published_values(name, bits):
    learned, weight, golden = rounding(name, bits, "alpha")
    with torch.no_grad():
        torch.testing.assert_close(rectified_sigmoid(learned.alpha), golden["soft_rounding"])
        torch.testing.assert_close(learned.train()(weight), golden["soft"])
        assert torch.equal(learned.eval()(weight), golden["hard"])


@pytest.mark.parametrize("beta", [20, 7, 2])
@pytest.mark.parametrize(("name", "bits"), CASES)
def test_published_regularizer(name, bits, beta):
    learned, _, golden = rounding(name, bits, "alpha")
    torch.testing.assert_close(learned.regularizer(beta).detach(), golden[f"regularizer_b{beta}"])


def test_all_vectors_of_the_file_are_used():
    used = {"alpha", "alpha_init", "delta", "zero_point", "hard", "hard_init", "soft", "soft_rounding"}
    used |= {f"regularizer_b{beta}" for beta in (20, 7, 2)}
    assert all(published(*case).keys() == used for case in CASES)


@given(WEIGHTS, SPECS)
def test_the_soft_start_is_the_clipped_weight(weight, spec):
    quantizer = UniformAffineQuantizer.fit(weight, spec)
    soft = AdaRoundQuantizer(quantizer, weight).train()(weight)
    delta, zero_point = quantizer.delta, quantizer.zero_point
    clipped = torch.minimum(
        torch.maximum(weight, (quantizer.lo - zero_point) * delta), (quantizer.hi - zero_point) * delta
    )
    assert ((soft - clipped).abs() <= 1e-4 * delta + 1e-6 * weight.abs().max()).all()


@given(WEIGHTS, ALPHAS, SPECS)
def test_the_folded_codes_give_the_hard_values_exactly(weight, alpha, spec):
    quantizer = UniformAffineQuantizer.fit(weight, spec)
    learned = AdaRoundQuantizer(quantizer, weight, alpha).eval()
    codes = learned.codes(weight)
    assert codes.dtype == torch.int32
    assert codes.min() >= 0
    assert codes.max() < 2**spec.bits
    assert torch.equal(quantizer.dequantize(codes), learned(weight))


@given(WEIGHTS, ALPHAS)
def test_every_weight_goes_to_the_step_below_or_above(weight, alpha):
    quantizer = UniformAffineQuantizer.fit(
        weight, QuantSpec(4, symmetric=True, per_channel=True, range_search="minmax")
    )
    hard = AdaRoundQuantizer(quantizer, weight, alpha).eval()(weight)
    for w, a, step, got in zip(
        weight.flatten(), alpha.flatten(), quantizer.delta.expand(3, 6).flatten(), hard.flatten()
    ):
        code = math.floor((w / step).item()) + (a.item() >= 0)
        assert got.item() == pytest.approx(min(max(code, -8), 7) * step.item(), rel=1e-6)


def test_rectified_sigmoid_reaches_both_ends_and_has_no_gradient_there():
    alpha = torch.tensor([-10.0, 0.0, 10.0], requires_grad=True)
    h = rectified_sigmoid(alpha)
    h.sum().backward()
    torch.testing.assert_close(h.detach(), torch.tensor([0, 0.5, 1]))
    torch.testing.assert_close(alpha.grad, torch.tensor([0, 1.2 / 4, 0]))


@pytest.mark.parametrize("beta", [2.0, 7.0, 20.0])
def test_regularizer_vanishes_for_decided_roundings_only(beta):
    weight = torch.zeros(2, 3)
    quantizer = UniformAffineQuantizer(torch.ones(2, 1), torch.zeros(2, 1), QuantSpec(4))
    decided = torch.tensor([[-9.0, 9.0, 9.0], [9.0, -9.0, -9.0]])
    assert AdaRoundQuantizer(quantizer, weight, decided).regularizer(beta).item() == 0
    assert AdaRoundQuantizer(quantizer, weight, torch.zeros(2, 3)).regularizer(beta).item() == 6
    undecided = AdaRoundQuantizer(quantizer, weight, torch.full((2, 3), 0.4))
    h = 1.2 / (1 + math.exp(-0.4)) - 0.1
    assert undecided.regularizer(beta).item() == pytest.approx(6 * (1 - (2 * h - 1) ** beta), rel=1e-5)


def test_the_exponent_falls_from_20_to_2_after_a_fifth_of_the_iterations():
    assert [beta_at(i, 1000) for i in (0, 100, 199)] == [None] * 3
    assert [beta_at(i, 1000) for i in (200, 400, 600, 800, 1000)] == pytest.approx([20, 15.5, 11, 6.5, 2])


def test_the_rate_is_the_papers_at_its_iterations_and_grows_as_they_get_fewer():
    assert rate_for(20_000) == rate_for(40_000) == 1e-3
    assert [rate_for(n) for n in (1, 60, 2000)] == [1e-2] * 3
    assert [n * rate_for(n) for n in (2001, 5000, 10_000)] == pytest.approx([20] * 3)


def test_a_split_quantizer_gives_split_rounding():
    weight = VECTORS["input.weight4d"]
    split = SplitQuantizer.fit(weight, QuantSpec(4, per_channel=True), (2, 3))
    learned = split.per_slice(AdaRoundQuantizer, weight).eval()
    for q, part in zip(split.quantizers(), weight.split((2, 3), dim=1)):
        alone = AdaRoundQuantizer(q, part).eval()
        place = slice(0, 2) if part.shape[1] == 2 else slice(2, 5)
        assert torch.equal(learned(weight)[:, place], alone(part))
        assert torch.equal(learned.codes(weight)[:, place], alone.codes(part))
    assert sum(p.numel() for p in learned.parameters()) == weight.numel()


def test_alpha_alone_is_learned_with_the_slope_of_the_soft_value():
    weight = torch.tensor([[-9.0, 0.3, 1.2, 2.6, 9.0]], requires_grad=True)  # the first and the last are clipped
    quantizer = UniformAffineQuantizer(torch.full((1, 1), 0.5), torch.zeros(1, 1), QuantSpec(4, symmetric=True))
    learned = AdaRoundQuantizer(quantizer, weight, torch.tensor([[0.1, -0.5, 0.0, 1.0, 0.2]])).train()
    upstream = torch.tensor([[1.0, 2.0, -3.0, 4.0, 5.0]])
    learned(weight).backward(upstream)
    sigmoid = [1 / (1 + math.exp(-a)) for a in learned.alpha[0].tolist()]
    slopes = [0.5 * 1.2 * s * (1 - s) * g for s, g in zip(sigmoid, upstream[0].tolist())]
    torch.testing.assert_close(learned.alpha.grad, torch.tensor([[0.0, *slopes[1:4], 0.0]]))
    assert [name for name, _ in learned.named_parameters()] == ["alpha"]


@pytest.mark.parametrize("beta", [2.0, 11.0, 20.0])
def test_gradients_are_those_of_the_plain_formulas(beta):
    weight = VECTORS["input.weight4d"].double()
    quantizer = UniformAffineQuantizer.fit(weight, QuantSpec(4, per_channel=True, range_search="mse"))
    alpha = 3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    upstream = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    learned = AdaRoundQuantizer(quantizer, weight, alpha).train()
    (learned(weight) * upstream).sum().add(learned.regularizer(beta)).backward()
    plain = alpha.clone().requires_grad_()
    h = (torch.sigmoid(plain) * 1.2 - 0.1).clamp(0, 1)
    codes = ((weight / quantizer.delta).floor() + h + quantizer.zero_point).clamp(0, 15)
    loss = (upstream * (codes - quantizer.zero_point) * quantizer.delta).sum()
    (loss + (1 - (2 * h - 1).abs().pow(beta)).sum()).backward()
    torch.testing.assert_close(learned.alpha.grad, plain.grad, rtol=1e-10, atol=1e-12)
