"""Observers against the published running statistics; attention products; activation sites."""

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from qdiff.policy import QuantSpec
from qdiff.quant_block import ActSite, Observer, QuantProduct, RunningObserver
from qdiff.quant_layer import SplitQuantizer, UniformAffineQuantizer
from tests.golden_networks import GOLDEN

VECTORS = load_file(GOLDEN / "quantizers.safetensors")
SPEC = QuantSpec(8)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("name", "symmetric"), [("running", False), ("running_sym", True)])
def test_published_running_statistics(name, symmetric):
    observer = RunningObserver(QuantSpec(8, symmetric))
    for i in range(5):  # the inputs that the vectors were made with, each wider and higher than the last
        output = observer(VECTORS["input.act_gauss"] * (1 + 0.2 * i) + 0.1 * i)
    torch.testing.assert_close(observer.found.delta.detach(), VECTORS[f"{name}.delta"], rtol=2.0**-23, atol=0)
    assert observer.found.zero_point.item() == VECTORS.get(f"{name}.zero_point", torch.tensor(0)).item()
    torch.testing.assert_close(output, VECTORS[f"{name}.output"])


def test_running_statistics_are_exponential_averages():
    observer, low, high = RunningObserver(QuantSpec(8, range_search="mse")), None, None
    for i in range(6):
        x = gaussian(40, seed=i) - 1
        observer(x)
        low = x.min().item() if low is None else 0.95 * low + 0.05 * x.min().item()
        high = x.max().item() if high is None else 0.95 * high + 0.05 * x.max().item()
    assert observer.found.delta.item() == pytest.approx((high - low) / 255, rel=1e-5)
    assert observer.found.zero_point.item() == round(-low / (high - low) * 255)


def test_an_observer_keeps_the_range_of_its_first_input():
    first, second = gaussian(50), 7 * gaussian(50, seed=1)
    quantizer, observer = UniformAffineQuantizer.fit(first, SPEC), Observer(SPEC)
    assert torch.equal(observer(first), quantizer(first))
    assert torch.equal(observer(second), quantizer(second))


class Scaled(nn.Module):
    def forward(self, a, b):
        return 3 * a @ b


def test_a_product_quantizes_each_operand_with_its_own_quantizer():
    a, b = gaussian(2, 3, 4), gaussian(2, 4, 5, seed=1)
    specs = QuantSpec(4), QuantSpec(3, symmetric=True)
    product = QuantProduct(Scaled(), ("v", "w"), specs)
    assert torch.equal(product(a, b), 3 * a @ b)
    q_a, q_b = (UniformAffineQuantizer.fit(x, spec) for x, spec in zip((a, b), specs))
    product.act_quantizer_v = q_a
    assert torch.equal(product(a, b), 3 * q_a(a) @ b)
    product.act_quantizer_w = q_b
    assert torch.equal(product(a, b), 3 * q_a(a) @ q_b(b))
    assert {key.partition(".")[0] for key in product.state_dict()} == {"act_quantizer_v", "act_quantizer_w"}
    product.quantizing = False
    assert torch.equal(product(a, b), 3 * a @ b)


def site(split: tuple[int, ...] | None = None) -> ActSite:
    return ActSite("model.conv", nn.Module(), "act_quantizer", SPEC, split)


def test_a_site_settles_on_what_was_observed():
    place, x = site(), gaussian(2, 8)
    place.set(None)
    assert place.quantizer is None
    place.observe(Observer)
    place.quantizer(x)
    place.settle()
    assert type(place.quantizer) is UniformAffineQuantizer
    assert torch.equal(place.quantizer(x), UniformAffineQuantizer.fit(x, SPEC)(x))


@pytest.mark.parametrize("observer", [Observer, RunningObserver])
def test_a_split_site_observes_each_slice_by_itself(observer):
    place = site((3, 5))
    x = torch.cat([gaussian(4, 3), 50 * gaussian(4, 5, seed=1)], dim=1)
    place.observe(observer)
    seen = place.quantizer(x)
    place.settle()
    assert type(place.quantizer) is SplitQuantizer
    assert torch.equal(place.quantizer(x), seen)
    small, large = (q.delta.item() for q in place.quantizer.quantizers())
    assert large > 10 * small
    assert not [m for m in place.quantizer.modules() if isinstance(m, Observer)]


@pytest.mark.parametrize("split", [None, (3, 5)])
def test_a_site_that_no_input_reached_is_named(split):
    place = site(split)
    place.observe(Observer)
    with pytest.raises(RuntimeError, match=r"model\.conv\.act_quantizer was never reached"):
        place.settle()
