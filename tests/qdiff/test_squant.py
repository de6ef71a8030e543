"""SQuant against loops written from the paper, hand-computed cases, and what the paper guarantees."""

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor, nn

from qdiff.adapters import adapter_for
from qdiff.policy import QuantPolicy, QuantSpec
from qdiff.quant_layer import QuantModule, SplitQuantizer, UniformAffineQuantizer, fit_quantizer
from qdiff.quant_model import QuantModel
from qdiff.squant import flips, round_layers, squant
from tests.qdiff.squant import assert_squant
from tests.tiny import tiny_network

SHAPES = [(5, 7, 3, 3), (4, 6, 1, 3), (3, 9, 5), (6, 8, 1, 1), (5, 40)]
SPECS = [
    QuantSpec(4, per_channel=True, range_search="minmax"),
    QuantSpec(2, per_channel=True, range_search="minmax"),
    QuantSpec(8, per_channel=True, range_search="max_scale"),
    QuantSpec(3, symmetric=True, per_channel=True, range_search="max_scale"),  # clips
    QuantSpec(2, per_channel=True, range_search="mse"),  # clips
    QuantSpec(4, range_search="minmax"),
]


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loops(weight: Tensor, quantizer: UniformAffineQuantizer) -> Tensor:
    """The codes by algorithms 1 and 2, a weight at a time, with the paper's two kinds of candidates."""
    lo, hi = quantizer.lo, quantizer.hi
    found = []
    delta, zero = (x.expand(len(weight), *[1] * (weight.ndim - 1)) for x in (quantizer.delta, quantizer.zero_point))
    for o, channel in enumerate(weight.flatten(2) if weight.ndim > 2 else weight.unsqueeze(2)):
        places = (channel / delta[o].item() + zero[o].item()).tolist()
        codes = [[min(max(round(x), lo), hi) for x in kernel] for kernel in places]
        total, candidates = 0.0, []
        for c, kernel in enumerate(places):
            rest, candidate = squant_k(codes[c], kernel, lo, hi)
            total += rest
            if candidate is not None:
                candidates.append((abs(codes[c][candidate] - kernel[candidate]), rest, c, candidate))
        able = sorted((x for x in candidates if x[1] * total > 0), reverse=True)
        for _, rest, c, i in able[: round(abs(total))]:
            codes[c][i] -= 1 if rest > 0 else -1
        found.append(codes)
    return (torch.tensor(found) - lo).reshape(weight.shape)


def squant_k(codes: list[int], places: Sequence[float], lo: int, hi: int) -> tuple[float, int | None]:
    """Flip codes of a kernel; return the sum of errors that is left, and which weight SQuant-C may flip."""
    errors = [code - place for code, place in zip(codes, places)]
    total = math.fsum(errors)
    down = 1 if total > 0 else -1
    able = [i for i, e in enumerate(errors) if e * down > 0 and lo <= codes[i] - down <= hi]
    able.sort(key=lambda i: -abs(errors[i]))
    number = min(round(abs(total)), len(able))
    for i in able[:number]:
        codes[i] -= down
    rest = total - number * down
    if rest * down < 0:  # over-squant: the weight that was flipped last may go back
        return rest, able[number - 1]
    return rest, able[number] if number < len(able) else None  # under-squant: the next one


def errors_of(codes: Tensor, weight: Tensor, quantizer: UniformAffineQuantizer) -> Tensor:
    """Codes less weights in steps, (O, C, K)."""
    errors = codes + quantizer.lo - quantizer.zero_point - weight / quantizer.delta
    return errors.reshape(*weight.shape[:2], -1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.bits}-{s.range_search}")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_codes_are_those_of_loops(shape, spec, seed):
    weight = gaussian(*shape, seed=seed)
    quantizer = UniformAffineQuantizer.fit(weight, spec)
    codes, expected = squant(weight, quantizer), loops(weight, quantizer)
    assert codes.dtype == torch.int32 and torch.equal(codes, expected.int())
    assert not torch.equal(codes, quantizer.codes(weight))
    assert codes.min() >= 0 and codes.max() <= 2**spec.bits - 1


ROOMY = UniformAffineQuantizer(torch.tensor(1.0), torch.tensor(128.0), QuantSpec(8))  # no code is at an end


def arrays(*shape: int) -> st.SearchStrategy[Tensor]:
    return hnp.arrays("float64", shape, elements=st.floats(-100, 100)).map(torch.from_numpy)


@given(st.sampled_from([(2, 3, 3, 3), (2, 12, 1, 2), (3, 17), (1, 1, 5)]).flatmap(lambda shape: arrays(*shape)))
def test_guarantees_of_the_paper(weight):
    errors = errors_of(squant(weight, ROOMY), weight, ROOMY)
    assert errors.abs().max() <= 1
    assert errors.sum(2).abs().max() <= 1 + 1e-9
    assert errors.sum((1, 2)).abs().max() <= 0.5 + 1e-9


@given(arrays(2, 1, 3, 3))
def test_the_only_kernel_of_a_channel_adds_up_to_half_a_step(weight):
    """SQuant-K alone: nothing is left for SQuant-C."""
    errors = errors_of(squant(weight, ROOMY), weight, ROOMY)
    assert errors.sum(2).abs().max() <= 0.5 + 1e-9


@given(arrays(2, 9, 1, 1))
def test_in_kernels_of_one_weight_few_are_flipped(weight):
    """No more than the sum of the channel has steps, and of these the ones whose errors were largest."""
    nearest = ROOMY.codes(weight)
    flipped, before = squant(weight, ROOMY) != nearest, errors_of(nearest, weight, ROOMY).squeeze(2)
    for row, errors in zip(flipped.flatten(1), before):
        assert (row.sum() - errors.sum().abs()).abs() <= 0.5 + 1e-9
        against = errors * errors.sum().sign()
        if row.any() and not row.all():
            assert against[row].min() >= against[~row].max()


@given(arrays(3, 4, 3, 3), st.sampled_from(SPECS))
def test_codes_stay_in_range(weight, spec):
    quantizer = UniformAffineQuantizer.fit(weight, spec)
    codes, nearest = squant(weight, quantizer), quantizer.codes(weight)
    assert codes.min() >= 0 and codes.max() < 2**spec.bits
    assert (codes - nearest).abs().max() <= 1
    moved = codes != nearest
    assert (errors_of(codes, weight, quantizer).reshape(weight.shape)[moved].abs() <= 1).all()


def test_what_cancels_stays_rounded_to_nearest():
    weight = gaussian(3, 4, 2)
    mirrored = torch.cat([weight, -weight], dim=2)  # in kernels
    alternating = torch.cat([weight[:, :, :1], -weight[:, :, :1]], dim=1)  # in channels of kernels of one weight
    for x in (mirrored, alternating, weight.round()):
        assert torch.equal(squant(x, ROOMY), ROOMY.codes(x))


A, B, C = [0.4, 0.3, 0.2, -0.1], [0.3, 0.1, 0, 0], [0.4, 0.05, 0, 0]  # errors of kernels
D, E = [-0.3, -0.1, 0, 0], [0, 0, 0.1, -0.1]


@pytest.mark.parametrize(
    ("kernels", "expected"),
    [
        # 0.8 -> -0.2, and 0.4, 0.45: together 0.65, so one of the last two, whose largest errors are 0.3 and 0.4
        ([A, B, C], [[-1, 0, 0, 0], [0, 0, 0, 0], [-1, 0, 0, 0]]),
        # -0.2 and -0.4: the first weight of A, now -0.6, goes back
        ([A, D], [[0, 0, 0, 0], [0, 0, 0, 0]]),
        # 0.4 and 0: less than half a step
        ([B, E], [[0, 0, 0, 0], [0, 0, 0, 0]]),
    ],
)
def test_channels_by_hand(kernels, expected):
    errors = torch.tensor([kernels, (-torch.tensor(kernels)).tolist()], dtype=torch.float64)
    found = flips(errors, torch.ones_like(errors, dtype=torch.bool))
    assert found.tolist() == [expected, (-torch.tensor(expected)).tolist()]


def test_weights_without_a_code_on_their_other_side():
    """The next largest takes the place of one that is at an end; where all are, nothing is flipped."""
    errors = torch.tensor([[A]])
    free = torch.tensor([[[False, True, True, True]]])
    assert flips(errors, free).tolist() == [[[0, -1, 0, 0]]]
    assert not flips(errors, torch.zeros_like(free)).any()
    top = torch.full((2, 3, 3), 127.4)
    assert torch.equal(squant(top, ROOMY), torch.full((2, 3, 3), 255, dtype=torch.int32))


@pytest.mark.parametrize("layer", [nn.Linear(64, 16), nn.Conv2d(16, 8, 3, bias=False)], ids=["linear", "conv"])
def test_inputs_that_are_all_the_same_meet_at_most_half_a_step(layer):
    """What the sums of channels are for: the output of a layer moves by its channel's sum of errors times the input."""
    layer.weight.data = gaussian(*layer.weight.shape).float()
    spec = QuantSpec(4, per_channel=True, range_search="margin")
    quantized = QuantModule(layer, fit_quantizer(layer.weight, spec, None))
    ones = torch.ones(1, 64) if isinstance(layer, nn.Linear) else torch.ones(1, 16, 3, 3)

    def largest() -> float:
        steps = (quantized(ones) - layer(ones)).flatten() / quantized.weight_quantizer.delta.flatten()
        return steps.abs().max().item()

    with torch.no_grad():
        assert largest() > 0.9
        round_layers([quantized])
        assert largest() <= 0.5 + 1e-3


def test_slices_of_a_split_layer_are_rounded_by_themselves():
    weight, spec = gaussian(4, 10, 3, 3), SPECS[0]
    weight[:, 6:] *= 5
    quantizer = SplitQuantizer.fit(weight, spec, (6, 4))
    codes = squant(weight, quantizer)
    for part, ours, q in zip(weight.split((6, 4), 1), codes.split((6, 4), 1), quantizer):
        assert torch.equal(ours, loops(part, q).int())
        assert errors_of(ours, part, q).sum((1, 2)).abs().max() <= 0.5 + 1e-9
    assert not torch.equal(codes, squant(weight, UniformAffineQuantizer.fit(weight, spec)))


def test_half_precision_is_widened():
    weight = gaussian(4, 6, 3, 3).bfloat16()
    quantizer = UniformAffineQuantizer.fit(weight, SPECS[0])
    assert torch.equal(squant(weight, quantizer), squant(weight.float(), quantizer))


def test_every_layer_of_a_network():
    network = tiny_network()
    model = QuantModel(network, QuantPolicy(SPECS[0], split=True), adapter_for(network))
    nearest = {path: layer.codes.clone() for path, layer in model.layers().items()}
    round_layers(model.layers().values())
    assert sum(layer.split is not None for layer in model.layers().values()) == 4
    assert_squant(model, tiny_network())
    for path, layer in model.layers().items():
        assert layer.codes.dtype == torch.uint8 and not torch.equal(layer.codes, nearest[path]), path
        assert torch.equal(layer.quantized_weight(), layer.weight_quantizer.dequantize(layer.codes)), path


def test_layers_without_their_weight():
    layer = QuantModule(nn.Linear(3, 2), UniformAffineQuantizer(torch.tensor(1.0), torch.tensor(0.0), QuantSpec(4)))
    layer.forget_full_precision()
    with pytest.raises(ValueError, match="holds integer weights only"):
        round_layers([layer])
