"""Observers against the published running statistics, and with attention that comes in slices."""

from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ldm.modules import slices
from ldm.modules.attention import CrossAttention
from qdiff import observers, ranges
from qdiff.adapters import ProductKind
from qdiff.calibration.memory import peak_bytes
from qdiff.observers import Observer, RunningObserver, TwoPass
from qdiff.policy import QuantSpec
from qdiff.quant_block import QuantProduct
from qdiff.quant_layer import UniformAffineQuantizer
from tests.golden_networks import GOLDEN
from tests.qdiff.loops import gaussian

VECTORS = load_file(GOLDEN / "quantizers.safetensors")
SPEC = QuantSpec(8)


@pytest.mark.parametrize(("name", "symmetric"), [("running", False), ("running_sym", True)])
def test_published_running_statistics(name, symmetric):
    observer = RunningObserver(QuantSpec(8, symmetric))
    for i in range(5):  # the inputs that the vectors were made with, each wider and higher than the last
        output = observer(VECTORS["input.act_gauss"] * (1 + 0.2 * i) + 0.1 * i)
    torch.testing.assert_close(observer.quantizer.delta.detach(), VECTORS[f"{name}.delta"], rtol=2.0**-23, atol=0)
    assert observer.quantizer.zero_point.item() == VECTORS.get(f"{name}.zero_point", torch.tensor(0)).item()
    torch.testing.assert_close(output, VECTORS[f"{name}.output"])


def test_running_statistics_are_exponential_averages():
    observer, low, high = RunningObserver(QuantSpec(8, range_search="mse")), None, None
    for i in range(6):
        x = gaussian(40, seed=i) - 1
        observer(x)
        low = x.min().item() if low is None else 0.95 * low + 0.05 * x.min().item()
        high = x.max().item() if high is None else 0.95 * high + 0.05 * x.max().item()
    assert observer.quantizer.delta.item() == pytest.approx((high - low) / 255, rel=1e-5)
    assert observer.quantizer.zero_point.item() == round(-low / (high - low) * 255)


def test_the_range_of_running_averages_contains_zero():
    """Of an activation that is never negative, and whatever the search of others is."""
    observer = RunningObserver(QuantSpec(8, range_search="mse"))
    observer(torch.linspace(1, 3, 40))
    assert observer.quantizer.delta.item() == pytest.approx(3 / 255) and observer.quantizer.zero_point.item() == 0


def test_an_observer_keeps_the_range_of_its_first_input():
    first, second = gaussian(50), 7 * gaussian(50, seed=1)
    quantizer, observer = UniformAffineQuantizer.fit(first, SPEC), Observer(SPEC)
    assert torch.equal(observer(first), quantizer(first))
    assert torch.equal(observer(second), quantizer(second))


TOKENS, HEADS = 6, 2
OPERANDS = {"qk_matmul": ("q", "k"), "smv_matmul": ("v", "w")}


def observed(make) -> tuple[CrossAttention, dict[str, nn.Module]]:
    """An attention whose products' operands are observed, and the observers by operand."""
    torch.manual_seed(0)
    attention = CrossAttention(8, None, HEADS, 4)
    found = {}
    for product, operands in OPERANDS.items():
        quantized = QuantProduct(getattr(attention, product), ProductKind(operands))
        setattr(attention, product, quantized)
        for operand in operands:
            found[operand] = make(QuantSpec(4, always_zero=operand == "w"), second_pass=operand == "w")
            setattr(quantized, f"act_quantizer_{operand}", found[operand])
    return attention, found


@pytest.mark.parametrize("entries", [1, 3, 100])
@pytest.mark.parametrize("kind", [Observer, RunningObserver])
def test_slices_have_the_ranges_of_all_scores(kind, entries, monkeypatch):
    batches = [(i + 1) * gaussian(4, TOKENS, 8, seed=i) for i in range(3)]
    batches[0][-1] *= 9  # what the first slice does not know
    at_once, expected = observed(kind)
    two_pass = TwoPass()
    in_slices, found = observed(partial(kind, two_pass=two_pass))
    monkeypatch.setattr(slices, "SCORES", entries * TOKENS**2)
    for x in batches:
        with torch.no_grad(), slices.repeat_slices(two_pass):
            output = in_slices(x)
        with torch.no_grad(), monkeypatch.context() as patch:
            patch.setattr(slices, "SCORES", 2**25)
            torch.testing.assert_close(output, at_once(x), rtol=1e-5, atol=1e-5)
        for name, observer in found.items():
            a, b = observer.quantizer, expected[name].quantizer
            torch.testing.assert_close(a.delta, b.delta, rtol=1e-5, atol=0)
            assert torch.equal(a.zero_point, b.zero_point), name


def test_slices_are_gone_through_for_the_operands_then_for_the_weights_and_once_more(monkeypatch):
    monkeypatch.setattr(slices, "SCORES", TOKENS**2)
    two_pass, calls = TwoPass(), []
    attention, _ = observed(partial(Observer, two_pass=two_pass))
    attention.qk_matmul.register_forward_hook(lambda *_: calls.append(1))
    for expected in (3, 4):  # the second time all are known
        with torch.no_grad(), slices.repeat_slices(two_pass):
            attention(gaussian(1, TOKENS, 8))
        assert len(calls) == HEADS * expected
    monkeypatch.setattr(slices, "SCORES", HEADS * TOKENS**2)
    attention, _ = observed(partial(Observer, two_pass=two_pass))
    attention.qk_matmul.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad(), slices.repeat_slices(two_pass):
        attention(gaussian(1, TOKENS, 8))
    assert len(calls) == HEADS * 4 + 1, "what is not sliced is computed once"


def test_values_of_many_slices_are_thinned_alike(monkeypatch):
    monkeypatch.setattr(observers, "MOST_VALUES", 100)
    observer = Observer(SPEC)
    slices_of_x = [torch.full((27,), float(i)) for i in range(40)]
    for part in slices_of_x:
        observer.collect(part)
        assert sum(part.values.numel() for part in observer.collected) <= 100
    counts = {part.values.numel() for part in observer.collected}
    assert len(observer.collected) == 40 and len(counts) == 1
    observer.freeze()
    assert torch.equal(observer.quantizer.delta, UniformAffineQuantizer.fit(torch.cat(slices_of_x), SPEC).delta)


def test_memory_of_two_passes_is_that_of_a_few_slices(monkeypatch):
    tokens = 256
    one = 4 * tokens**2  # bytes of the scores of one entry
    monkeypatch.setattr(slices, "SCORES", tokens**2)
    monkeypatch.setattr(ranges, "SEARCH_VALUES", 2**10)
    two_pass = TwoPass()
    attention, _ = observed(partial(Observer, two_pass=two_pass))
    x = gaussian(16, tokens, 8)  # 32 entries
    with torch.no_grad(), slices.repeat_slices(two_pass):
        peak = peak_bytes(lambda: attention(x))
    assert one < peak < 8 * one
