import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qdiff.adapters import Adapter
from qdiff.block_recon import (
    Captured,
    Outcome,
    Schedule,
    block_loss,
    block_reconstruction,
    output_loss,
)
from qdiff.calls import Call, Samples
from qdiff.errors import UserError
from qdiff.functional import lp_loss
from qdiff.objectives import LearnedRounding, LearnedSteps
from qdiff.policy import QuantPolicy, QuantSpec
from qdiff.quant_block import QuantBlock
from qdiff.quant_layer import SplitQuantizer, UniformAffineQuantizer
from qdiff.quant_model import QuantModel


class Pair(nn.Module):
    """A block of two convolutions with dropout between them; the second one sees two concatenated tensors."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(4, 6, 1)
        self.second = nn.Conv2d(10, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = nn.functional.dropout(self.first(x), 0.5, self.training).tanh()
        return self.second(torch.cat([h, x], 1))


TOY = Adapter("toy", Pair, (Pair,), {}, (), lambda model: {"0.second": (6, 4)})
NO_BLOCKS = Adapter("toy", nn.Linear, (), {}, (), lambda model: {})


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed))


def pair(bits=3, act: QuantSpec | None = None) -> tuple[QuantBlock, Captured]:
    """The block, split, and what it should give."""
    module = Pair().eval()
    for i, parameter in enumerate(module.parameters()):
        parameter.data = draw(i, *parameter.shape) * 0.5
    x = draw(100, 24, 4, 5, 5)
    with torch.no_grad():
        captured = Captured(Call((x,)), Samples(module(x)))
    policy = QuantPolicy(QuantSpec(bits, per_channel=True, range_search="minmax"), act, split=True)
    (block,) = QuantModel(nn.Sequential(module).eval(), policy, TOY).blocks()
    return block, captured


def linear(seed: int, bits: int, inputs: int = 8, outputs: int = 3) -> tuple[QuantBlock, Captured, Tensor]:
    """One layer on correlated inputs, where rounding to nearest is a poor choice."""
    layer = nn.Linear(inputs, outputs)
    layer.weight.data, layer.bias.data = draw(seed, outputs, inputs), draw(seed + 1, outputs)
    x = 0.1 * draw(seed + 2, 64, inputs) @ draw(seed + 3, inputs, inputs)
    weight = layer.weight.data.clone()
    policy = QuantPolicy(QuantSpec(bits, per_channel=True, range_search="minmax"))
    with torch.no_grad():
        captured = Captured(Call((x,)), Samples(layer(x)))
    (block,) = QuantModel(nn.Sequential(layer), policy, NO_BLOCKS).blocks()
    return block, captured, weight


def only_layer(block: QuantBlock):
    (layer,) = block.layers.values()
    return layer


def learn(block, captured, objective, iterations=60, lr=5e-2, batch_size=8, seed=0) -> Outcome:
    return block_reconstruction(block, captured, objective, Schedule(iterations, lr), batch_size, seeded(seed))


# Learned rounding


def exhaustive(block: QuantBlock, captured: Captured, weight: Tensor, bits: int) -> tuple[float, float]:
    """Least squared error over all roundings up or down, and that of rounding to nearest; the outputs are separate."""
    quantizer = only_layer(block).weight_quantizer
    x = captured.inputs.args[0].double().numpy()
    best = nearest = 0.0
    for w, delta, zero in zip(weight.double().numpy(), quantizer.delta.flatten(), quantizer.zero_point.flatten()):
        delta, zero = delta.item(), zero.item()  # noqa: PLW2901
        ups = np.array(list(itertools.product([0, 1], repeat=len(w))))
        values = (np.clip(np.floor(w / delta) + ups + zero, 0, 2**bits - 1) - zero) * delta
        best += ((x @ (values - w).T) ** 2).mean(0).min()
        rounded = (np.clip(np.round(w / delta) + zero, 0, 2**bits - 1) - zero) * delta
        nearest += ((x @ (rounded - w)) ** 2).mean()
    return best, nearest


def test_learned_rounding_comes_close_to_the_best_of_all_roundings():
    gaps = []
    for seed in (0, 10, 40):
        block, captured, weight = linear(seed, bits=3)
        best, nearest = exhaustive(block, captured, weight, 3)
        outcome = learn(block, captured, LearnedRounding(block), 300, 3e-2, 32)
        assert outcome.before == pytest.approx(nearest, rel=1e-4)
        assert best * (1 - 1e-4) <= outcome.after <= nearest
        gaps.append((outcome.after - best) / (nearest - best))
    assert max(gaps) < 0.1 and min(gaps) < 1e-3, gaps


def test_what_is_reported_is_what_the_block_has():
    block, captured = pair()
    outcome = learn(block, captured, LearnedRounding(block), 100, 3e-2)
    assert outcome.improved and outcome.after < 0.9 * outcome.before
    with torch.no_grad():
        error = (captured.inputs(block.module) - captured.target.tree) ** 2
    assert error.sum(1).mean().item() == pytest.approx(outcome.after, rel=1e-5)
    for layer in block.layers.values():
        assert layer.rounding is None
        assert layer.codes.max() <= 7
        torch.testing.assert_close(layer.dequantized, layer.weight_quantizer.dequantize(layer.codes))


def test_every_weight_goes_to_one_of_its_two_neighbours():
    block, captured = pair(bits=4)
    weights = {path: layer.weight.detach().clone() for path, layer in block.layers.items()}
    nearest = {path: layer.codes.clone() for path, layer in block.layers.items()}
    learn(block, captured, LearnedRounding(block), 100, 1e-1)
    moved = 0
    for path, layer in block.layers.items():
        assert torch.equal(layer.weight, weights[path]), "the weights themselves are not learned"
        distance = (layer.codes.int() - nearest[path].int()).abs()
        assert distance.max() <= 1
        moved += distance.sum().item()
        delta = layer.weight_quantizer.quantizers()[0].delta
        if not layer.split:
            assert ((layer.dequantized - weights[path]).abs() < delta * 1.001).all()
    assert moved > 5


@pytest.mark.parametrize("lr", [1e-2, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("bits", [2, 4])
def test_never_worse_than_rounding_to_nearest(bits, lr):
    block, captured = pair(bits)
    before = {path: layer.codes.clone() for path, layer in block.layers.items()}
    loss = block_loss(block.module, captured, 2.0, 7)
    outcome = learn(block, captured, LearnedRounding(block), 6, lr)
    assert outcome.before == pytest.approx(loss, rel=1e-5)
    now = block_loss(block.module, captured, 2.0, 7)
    assert now <= loss * (1 + 1e-6)
    if outcome.improved:
        assert now == pytest.approx(outcome.after, rel=1e-5)
    else:
        assert all(torch.equal(layer.codes, before[path]) for path, layer in block.layers.items())
        assert now == pytest.approx(loss, rel=1e-6)


def test_a_worse_rounding_is_not_kept():
    block, captured = pair()
    before = {path: layer.codes.clone() for path, layer in block.layers.items()}
    outcome = learn(block, captured, LearnedRounding(block), 1, 1e3)
    assert not outcome.improved and outcome.after > outcome.before
    assert all(torch.equal(layer.codes, before[path]) for path, layer in block.layers.items())


def test_the_regulariser_counts_every_weight_of_both_slices():
    block, _ = pair()
    objective, iterations = LearnedRounding(block), 100
    with objective:
        alphas = objective.parameters()
        assert sum(a.numel() for a in alphas) == 4 * 6 + 10 * 3 * 9
        assert sorted(a.shape[1] for a in alphas) == [4, 4, 6], "one of each slice, and that of the plain layer"
        for i, alpha in enumerate(alphas):
            alpha.data = draw(i, *alpha.shape)
        h = np.concatenate([a.detach().double().numpy().ravel() for a in alphas])
        h = np.clip(1.2 / (1 + np.exp(-h)) - 0.1, 0, 1)
        for i in (0, 10, 19):
            assert objective.penalty(i, iterations) == 0.0
        for i in (20, 60, 99):
            beta = 20 - 18 * (i - 20) / 80
            expected = 0.01 * (1 - np.abs(2 * h - 1) ** beta).sum()
            assert objective.penalty(i, iterations).item() == pytest.approx(expected, rel=1e-5)
    assert all(layer.rounding is None for layer in block.layers.values())


class WithoutRegulariser(LearnedRounding):
    def penalty(self, iteration, iterations):
        return 0.0


def test_the_regulariser_decides_roundings():
    """Then what training saw and what is kept are nearly the same."""
    decided = {}
    for kind in (LearnedRounding, WithoutRegulariser):
        block, captured = pair()
        objective, alphas = kind(block), []
        objective.harden = lambda o=objective, a=alphas: a.extend(o.parameters())
        learn(block, captured, objective, 120, 5e-2)
        h = (torch.cat([a.detach().flatten() for a in alphas]).sigmoid() * 1.2 - 0.1).clamp(0, 1)
        decided[kind] = ((h < 0.1) | (h > 0.9)).float().mean().item()
    assert decided[LearnedRounding] > 0.6 > 2 * decided[WithoutRegulariser], decided


def test_state_and_load_are_a_round_trip():
    block, captured = pair()
    objective = LearnedRounding(block)
    start = objective.state()
    learn(block, captured, objective)
    learned = {key: x.clone() for key, x in objective.state().items()}
    assert learned.keys() == {"model.0.first.codes", "model.0.second.codes"} == start.keys()
    other, _ = pair()
    LearnedRounding(other).load(learned)
    assert torch.equal(captured.inputs(other.module), captured.inputs(block.module))


# Learned step sizes


ACT = QuantSpec(4, range_search="minmax")


def with_steps(scale: float, act: QuantSpec = ACT, bits: int = 8) -> tuple[QuantBlock, Captured]:
    """The block with min-max ranges for its activations, every step `scale` times what it should be."""
    block, captured = pair(bits, act)
    h = block.module.first(captured.inputs.args[0]).tanh()
    for site, x in zip(block.sites, (captured.inputs.args[0], torch.cat([h, captured.inputs.args[0]], 1))):
        site.set(SplitQuantizer.fit(x, act, site.split) if site.split else UniformAffineQuantizer.fit(x, act))
        for q in site.quantizer.quantizers():
            q.delta.mul_(scale)
    return block, captured


def deltas_of(block: QuantBlock) -> list[Tensor]:
    return [q.delta for site in block.sites for q in site.quantizer.quantizers()]


@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_step_sizes_recover_from_a_bad_start(scale):
    block, captured = with_steps(scale)
    objective = LearnedSteps(block)
    assert len(objective.parameters()) == 3, "one for the plain layer, one for each slice of the split one"
    outcome = learn(block, captured, objective, 150, 5e-2, 24)
    assert outcome.after < 0.5 * outcome.before
    with torch.no_grad():
        error = (captured.inputs(block.module) - captured.target.tree).abs() ** 2.4
    assert error.sum(1).mean().item() == pytest.approx(outcome.after, rel=1e-5)


def test_one_step_size_is_about_the_best_there_is():
    x = draw(0, 256, 8)
    layer = nn.Linear(8, 8, bias=False)
    layer.weight.data = torch.eye(8)
    spec = QuantSpec(3, symmetric=True)
    (block,) = QuantModel(nn.Sequential(layer), QuantPolicy(act=spec), NO_BLOCKS).blocks()
    (site,) = block.sites
    captured = Captured(Call((x,)), Samples(x))

    def loss(delta: float) -> float:
        site.set(UniformAffineQuantizer(torch.tensor(delta), torch.tensor(0.0), spec))
        return block_loss(block.module, captured, 2.4, 256)

    best = min(loss(delta) for delta in np.linspace(0.05, 3, 300))
    start = loss(2.5)
    outcome = learn(block, captured, LearnedSteps(block), 150, 6e-2, 256)
    assert outcome.before == pytest.approx(start)
    assert best * 0.99 <= outcome.after <= best * 1.03 < 0.5 * start


@pytest.mark.parametrize("lr", [1.0, 1e4])
def test_steps_are_never_worse_than_the_ranges_that_were_found(lr):
    block, captured = with_steps(1.0)
    start = [delta.clone() for delta in deltas_of(block)]
    loss = block_loss(block.module, captured, 2.4, 7)
    outcome = learn(block, captured, LearnedSteps(block), 5, lr)
    assert not outcome.improved
    assert all(torch.equal(a, b) for a, b in zip(deltas_of(block), start))
    assert not any(delta.requires_grad for delta in deltas_of(block))
    assert block_loss(block.module, captured, 2.4, 7) == loss


def test_steps_stay_positive_where_the_rate_is_larger_than_they_are():
    block, captured = with_steps(1.0)
    seen = []
    block.module.register_forward_pre_hook(lambda module, args: seen.extend(delta.item() for delta in deltas_of(block)))
    learn(block, captured, LearnedSteps(block), 5, 1e3)
    assert min(seen) > 0


def test_only_step_sizes_are_learned():
    block, captured = with_steps(3.0)
    before = {key: x.clone() for key, x in block.module.state_dict().items()}
    assert learn(block, captured, LearnedSteps(block), 20).improved
    changed = {key for key, x in block.module.state_dict().items() if not torch.equal(x, before[key])}
    assert changed == {
        "first.act_quantizer.delta",
        "second.act_quantizer.parts.0.delta",
        "second.act_quantizer.parts.1.delta",
    }
    assert all(delta > 0 for delta in deltas_of(block))


def test_sixteen_bits_keep_their_step():
    block, captured = with_steps(3.0, QuantSpec(16, range_search="minmax"))
    assert LearnedSteps(block).parameters() == [] == list(LearnedSteps(block).state())
    block, captured = with_steps(3.0)
    block.sites[0].quantizer.spec = QuantSpec(16)
    start = [delta.clone() for delta in deltas_of(block)]
    assert learn(block, captured, LearnedSteps(block), 20).improved
    same = [torch.equal(a, b) for a, b in zip(deltas_of(block), start)]
    assert same == [True, False, False]


def test_the_exponent_of_the_step_size_loss():
    block, captured = with_steps(3.0)
    outcomes = [learn(block, captured, LearnedSteps(block, p), 1, 1e-8) for p in (2.0, 2.4, 4.0)]
    with torch.no_grad():
        error = (captured.inputs(block.module) - captured.target.tree).abs()
    for p, outcome in zip((2.0, 2.4, 4.0), outcomes):
        assert outcome.before == pytest.approx((error**p).sum(1).mean().item(), rel=1e-4)


def test_steps_state_and_load_are_a_round_trip():
    block, captured = with_steps(3.0)
    learn(block, captured, LearnedSteps(block))
    state = {key: x.clone() for key, x in LearnedSteps(block).state().items()}
    assert len(state) == 3
    other, _ = with_steps(1.0)
    LearnedSteps(other).load(state)
    assert torch.equal(captured.inputs(other.module), captured.inputs(block.module))
    assert not any(delta.requires_grad for delta in deltas_of(other))


def test_rates():
    """Of the weights constant, of the steps as torch's cosine schedule."""
    block, _ = with_steps(1.0)
    assert {LearnedRounding(block).rate(i, 40) for i in range(40)} == {1.0}
    adam = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=4e-4)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, T_max=40)
    for i in range(40):
        assert 4e-4 * LearnedSteps(block).rate(i, 40) == pytest.approx(cosine.get_last_lr()[0], abs=1e-12)
        adam.step()
        cosine.step()


class Recorded:
    """An objective whose one parameter has the gradient 1, so that Adam moves it by the rate in every iteration."""

    p = 2.0

    def __init__(self, rates):
        self.x, self.rates, self.seen = nn.Parameter(torch.zeros(1)), rates, [0.0]

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass

    def parameters(self):
        return [self.x]

    def rate(self, iteration, iterations):
        return self.rates[iteration]

    def penalty(self, iteration, iterations):
        return self.x.sum()

    def after_step(self):
        self.seen.append(self.x.item())

    def harden(self):
        pass

    def keep(self):
        raise AssertionError("nothing improved")


def test_every_iteration_has_its_own_rate():
    block, captured = pair()
    recorded = Recorded([1.0, 0.5, 0.25, 2.0])
    learn(block, captured, recorded, 4, 0.1)
    assert np.diff(recorded.seen) == pytest.approx([-0.1, -0.05, -0.025, -0.2], rel=1e-4)


# The loop


def test_randomness_comes_from_the_generator_alone():
    results = []
    for noise, seed in ((0, 5), (1, 5), (1, 6)):
        torch.manual_seed(noise)
        block, captured = pair()
        learn(block, captured, LearnedRounding(block), 30, 1e-2, 2, seed)
        results.append([layer.codes for layer in block.layers.values()])
    same = [all(torch.equal(a, b) for a, b in zip(results[0], other)) for other in results[1:]]
    assert same == [True, False]


def test_dropout_is_off():
    results = []
    for training in (False, True):
        block, captured = pair()
        block.module.train(training)
        results.append(learn(block, captured, LearnedRounding(block)))
    assert results[0] == results[1]


@pytest.mark.parametrize("iterations", [1, 49, 50, 51, 130])
def test_progress_adds_up(iterations):
    block, captured, _ = linear(0, 3)
    done = []
    block_reconstruction(block, captured, LearnedRounding(block), Schedule(iterations, 1e-2), 4, seeded(0), done.append)
    assert sum(done) == iterations and max(done) <= 50


@pytest.mark.parametrize("batch_size", [1, 7, 24, 100])
def test_block_loss_weighs_samples_equally(batch_size):
    block, captured = pair()
    with torch.no_grad():
        output = captured.inputs(block.module).double().numpy()
    expected = (np.abs(output - captured.target.tree.double().numpy()) ** 3).sum(1).mean()
    assert block_loss(block.module, captured, 3.0, batch_size) == pytest.approx(expected, rel=1e-5)


# Trees of outputs


def test_the_loss_of_a_tree_is_the_sum_over_its_floating_tensors():
    x, y, target = draw(0, 4, 3, 5), draw(1, 4), draw(2, 4, 3, 5)
    wanted = Samples({"a": target, "b": [y + 2, None], "n": torch.full((4,), 9)})
    found = output_loss({"a": x, "b": [y, None], "n": torch.zeros(4).long()}, wanted, 3.0)
    assert found.item() == pytest.approx((x - target).abs().pow(3).sum(1).mean().item() + 2**3)
    assert torch.equal(output_loss(x, Samples(target), 2.4), lp_loss(x, target, 2.4)), "of one tensor to the bit"


def test_a_block_without_floating_outputs():
    with pytest.raises(ValueError, match="without floating-point outputs"):
        output_loss((torch.zeros(2).long(),), Samples((torch.zeros(2).long(),)), 2.0)


def test_a_block_that_changes_its_input_in_place_leaves_what_was_captured():
    block, captured = pair()
    before = captured.inputs.args[0].clone()
    block.module.register_forward_pre_hook(lambda module, args: args[0].add_(1).any() and None)
    learn(block, captured, LearnedRounding(block))
    assert torch.equal(captured.inputs.args[0], before)


# Numbers that are not


def refusal(block, captured, objective, iterations=60) -> str:
    with pytest.raises(UserError) as caught:
        learn(block, captured, objective, iterations)
    assert "\n" not in str(caught.value) and block.path in str(caught.value) and "--cali_lr" in str(caught.value)
    assert all(layer.rounding is None for layer in block.layers.values())
    return str(caught.value)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e38])
def test_a_loss_that_is_not_finite_stops(bad):
    block, captured = pair()
    captured.target.tree[13, 1, 2, 3] = bad
    assert "before learning" in refusal(block, captured, LearnedRounding(block))


def fail_after(block: QuantBlock, calls: int) -> None:
    def hook(module, args, output):
        nonlocal calls
        calls -= 1
        return output if calls >= 0 else output * math.nan

    block.module.register_forward_hook(hook)


@pytest.mark.parametrize(("calls", "when"), [(4, "at iteration 50"), (3 + 55, "at iteration 60"), (63, "after learn")])
def test_a_loss_that_stops_being_finite(calls, when):
    block, captured = with_steps(3.0)  # three batches of 8 are the whole set
    start = [delta.clone() for delta in deltas_of(block)]
    fail_after(block, calls)
    assert when in refusal(block, captured, LearnedSteps(block))
    assert all(torch.equal(a, b) and not a.requires_grad for a, b in zip(deltas_of(block), start))
