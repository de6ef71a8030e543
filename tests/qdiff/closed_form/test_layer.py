"""A layer in closed form: exact where it can be, better than nearest, and what its bias makes up for."""

from itertools import product

import pytest
import torch
from torch import Tensor, nn

from qdiff.closed_form.layer import LayerError, matrices, solve_layer
from qdiff.closed_form.moments import Moments
from qdiff.closed_form.shrinkage import UNITS
from qdiff.policy import QuantSpec
from qdiff.quant_layer import QuantModule, fit_quantizer

W3 = QuantSpec(3, per_channel=True, range_search="minmax")
LAYERS = {
    "linear": lambda: nn.Linear(24, 5),
    "convolution": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "grouped": lambda: nn.Conv2d(4, 6, (3, 1), groups=2),
    "one dimension": lambda: nn.Conv1d(4, 3, 5, stride=2),
}
SHAPES = {"linear": (24,), "convolution": (4, 5, 5), "grouped": (4, 5, 5), "one dimension": (4, 9)}


def drawn(name: str, samples: int = 60, seed: int = 0) -> Tensor:
    """Correlated inputs with means of their own; the first dimension after N is mixed."""
    generator = torch.Generator().manual_seed(seed)
    shape = SHAPES[name]
    mix = torch.eye(shape[0]) + 0.5 * torch.randn(shape[0], shape[0], generator=torch.Generator().manual_seed(9))
    x = torch.randn(samples, *shape, generator=generator)
    means = torch.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1)) / 2
    return torch.einsum("ij,nj...->ni...", mix, x) + means


def quantized(layer: nn.Module, spec: QuantSpec = W3, split: tuple[int, ...] | None = None) -> QuantModule:
    for i, parameter in enumerate(layer.parameters()):
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
    return QuantModule(layer, fit_quantizer(layer.weight, spec, split))


def full_precision(module: QuantModule, x: Tensor) -> Tensor:
    module.quantizing = False
    y = module(x).detach()
    module.quantizing = True
    return y


def moments_of(module: QuantModule, x: Tensor, y: Tensor) -> Moments:
    """Of all positions, each with weight 1: inputs x, of the quantized network, and outputs y."""
    weight, groups = module.fp_weight, module.operation.groups
    columns = []
    for windows in (module.operation.windows(x, tuple(weight.shape[2:])), module.operation.positions(y)):
        count = windows.shape[0] * windows.shape[1]
        every = windows.at(torch.arange(len(x)).repeat_interleave(count), torch.arange(count).repeat(len(x)))
        columns.append(every.unflatten(1, (groups, -1)).transpose(0, 1).flatten(2))
    found = Moments(matrices(weight.detach(), groups), centred=module.bias is not None)
    n = columns[0].shape[1]
    found.add(*columns, torch.ones(n), torch.arange(n) % UNITS)
    return found.finish()


def solve(module: QuantModule, x: Tensor, y: Tensor, mismatch: bool = False) -> LayerError:
    return solve_layer(module, moments_of(module, x, y), mismatch=mismatch)


def error(module: QuantModule, x: Tensor, y: Tensor) -> float:
    """Mean over positions of the squared error, summed over outputs."""
    return ((module(x) - y).square().sum() / (y.numel() / len(module.fp_weight))).item()


@torch.no_grad()
@pytest.mark.parametrize("mismatch", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_the_output_errs_less_than_to_nearest_also_on_other_inputs(name, mismatch):
    module, x, other = quantized(LAYERS[name]()), drawn(name), drawn(name, seed=1)
    y, y_other = full_precision(module, x), full_precision(module, other)
    nearest = error(module, other, y_other)
    told = solve(module, x, y, mismatch)
    assert error(module, other, y_other) < 0.8 * nearest
    assert told.solved < 0.8 * told.nearest
    assert told.solved == pytest.approx(error(module, x, y), rel=1e-3)
    assert told.power == pytest.approx((y.transpose(0, 1).flatten(1).var(1, unbiased=False)).sum().item(), rel=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("name", LAYERS)
def test_the_bias_takes_the_mean_error_away(name):
    module, x = quantized(LAYERS[name]()), drawn(name)
    y, kept = full_precision(module, x), module.bias
    solve(module, x, y)
    means = (module(x) - y).movedim(1, -1).flatten(0, -2).mean(0)
    torch.testing.assert_close(means, torch.zeros_like(means), atol=2e-5, rtol=0)
    assert not torch.equal(module.bias, kept)
    assert torch.equal(full_precision(module, x), y), "in full precision nothing has changed"


@torch.no_grad()
def test_a_layer_without_bias_aims_at_the_outputs_themselves():
    """The mean error, of inputs with large means, is part of what is minimised, because nothing makes up for it."""
    module = quantized(nn.Conv2d(4, 6, 3, padding=1, bias=False))
    x = drawn("convolution")
    y = full_precision(module, x)
    told = solve(module, x, y)
    assert module.bias is None and module.fp_bias is None
    assert told.solved == pytest.approx(error(module, x, y), rel=1e-3) and told.solved < 0.6 * told.nearest
    assert told.power == pytest.approx(y.square().sum().item() / (y.numel() / 6), rel=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("spec", [W3, QuantSpec(4, symmetric=True, per_channel=True, range_search="minmax")])
@pytest.mark.parametrize("name", ["linear", "grouped"])
def test_a_weight_on_the_grid_stays_there(name, spec):
    module, x = quantized(LAYERS[name](), spec), drawn(name)
    lo, hi = spec.bounds
    for row in module.weight:  # every row has both ends of the range, so that the search finds it
        codes = torch.linspace(lo, hi, row.numel()).round() - lo
        row.copy_(((codes + lo - (0 if spec.symmetric else 3)) * 0.25).reshape(row.shape))
    y = full_precision(module, x)
    bias = module.bias.clone()
    told = solve(module, x, y)
    torch.testing.assert_close(module.quantized_weight(), module.weight, atol=1e-5, rtol=0)
    torch.testing.assert_close(module.bias, bias, atol=1e-4, rtol=0)
    assert told.solved < 1e-6 * told.power


@torch.no_grad()
def test_slices_have_ranges_of_their_own():
    """One slice a hundred times as large: only with its own step size the other one has any codes left."""
    module = quantized(nn.Conv2d(4, 6, 3, padding=1), W3, (1, 3))
    module.weight[:, 1:] *= 0.01
    x = drawn("convolution")
    x[:, 1:] *= 100
    y = full_precision(module, x)
    told = solve(module, x, y)
    large, small = (q.delta.flatten() for q in module.weight_quantizer.quantizers())
    assert module.split == (1, 3) and large.shape == small.shape == (6,) and (large > 20 * small).all()
    assert told.solved == pytest.approx(error(module, x, y), rel=1e-3) and told.solved < 0.05 * told.power


@torch.no_grad()
def test_one_range_for_all_outputs_stays_as_it_is():
    module, x = quantized(LAYERS["convolution"](), QuantSpec(3, range_search="minmax")), drawn("convolution")
    y, before = full_precision(module, x), module.weight_quantizer
    told = solve(module, x, y)
    assert torch.equal(module.weight_quantizer.delta, before.delta) and module.weight_quantizer.delta.shape == ()
    assert torch.equal(module.weight_quantizer.zero_point, before.zero_point)
    assert told.solved == pytest.approx(error(module, x, y), rel=1e-3) and told.solved < 0.8 * told.nearest


@torch.no_grad()
def test_groups_are_layers_of_their_own():
    module, x = quantized(LAYERS["grouped"]()), drawn("grouped")
    solve(module, x, full_precision(module, x))
    for g, rows in enumerate((slice(0, 3), slice(3, 6))):
        alone = quantized(nn.Conv2d(2, 3, (3, 1)))
        alone.weight.copy_(module.weight[rows])
        alone.bias.copy_(module.fp_bias[rows])
        alone = QuantModule(_like(alone), fit_quantizer(alone.weight, W3, None))
        part = x[:, 2 * g : 2 * g + 2]
        solve(alone, part, full_precision(alone, part))
        assert torch.equal(alone.codes, module.codes[rows])
        torch.testing.assert_close(alone.quantized_weight(), module.quantized_weight()[rows])
        torch.testing.assert_close(alone.bias, module.bias[rows])


def _like(module: QuantModule) -> nn.Conv2d:
    layer = nn.Conv2d(2, 3, (3, 1))
    layer.load_state_dict({"weight": module.weight, "bias": module.bias})
    return layer


@torch.no_grad()
@pytest.mark.parametrize("name", ["linear", "convolution"])
def test_weights_make_up_for_a_known_distortion_of_the_inputs(name):
    """Inputs that a matrix and a shift have changed: W A^-1 and another bias give the same outputs."""
    spec = QuantSpec(8, per_channel=True, range_search="minmax")
    x = drawn(name, 2000 if name == "linear" else 200)
    channels = x.shape[1]
    generator = torch.Generator().manual_seed(3)
    a = torch.eye(channels) + 0.4 * torch.randn(channels, channels, generator=generator) / channels**0.5
    distorted = torch.einsum("ij,nj...->ni...", a, x)
    if name == "linear":  # the zeros of a padding would not be shifted
        distorted += 1.5
    errors = []
    for mismatch in (False, True):
        module = quantized(LAYERS[name](), spec)
        y = full_precision(module, x)
        told = solve(module, distorted, y, mismatch)
        errors.append(error(module, distorted, y))
        assert told.solved == pytest.approx(errors[-1], rel=1e-2, abs=1e-5 * told.power)
    assert errors[1] < 0.02 * errors[0] and errors[1] < 2e-3 * told.power
    expected = torch.einsum("oi...,ij->oj...", module.fp_weight, torch.linalg.inv(a))
    off, without = ((w - expected).norm() for w in (module.quantized_weight(), module.fp_weight))
    assert off < 0.4 * without, "not all the way, because of damping and shrinkage"


@torch.no_grad()
@pytest.mark.parametrize(("mismatch", "value"), list(product([False, True], [0.0, 2.5])))
def test_inputs_that_never_change_leave_an_exact_output(mismatch, value):
    """As those of the time embedding, where all samples are of one timestep: the bias is all that counts."""
    module, x = quantized(nn.Linear(6, 5)), torch.full((7, 6), value)
    y = full_precision(module, x)
    told = solve(module, x, y, mismatch)
    torch.testing.assert_close(module(x), y, atol=1e-5, rtol=1e-5)
    assert told.power < 1e-8 and told.solved < 1e-8


@torch.no_grad()
@pytest.mark.parametrize("name", LAYERS)
def test_a_solved_layer_computes_what_a_loaded_one_does(name):
    """To the last bit, so its weight has the same layout in memory."""
    module, x = quantized(LAYERS[name]()), drawn(name)
    solve(module, x, full_precision(module, x))
    loaded = quantized(LAYERS[name]())
    if module.bias is not None:
        loaded.set_bias(module.bias)
    loaded.weight_quantizer = module.weight_quantizer
    loaded.set_codes(module.codes.clone().contiguous())
    assert module.quantized_weight().stride() == loaded.quantized_weight().stride()
    assert torch.equal(module(x), loaded(x))
