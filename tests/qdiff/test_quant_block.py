"""Attention products and places of activations."""

import pytest
import torch
from torch import nn

from qdiff.adapters import ProductKind
from qdiff.observers import Observer, RunningObserver
from qdiff.phases import PerPhase, PhaseQuantizer, per_phase, set_phase
from qdiff.policy import QuantSpec
from qdiff.quant_block import ActSite, QuantProduct
from qdiff.quant_layer import PerSlice, SplitQuantizer, UniformAffineQuantizer, fit_quantizer
from tests.qdiff.loops import gaussian

SPEC = QuantSpec(8)


class Scaled(nn.Module):
    def forward(self, a, b):
        return 3 * a @ b


def test_a_product_quantizes_each_operand_with_its_own_quantizer():
    a, b = gaussian(2, 3, 4), gaussian(2, 4, 5, seed=1)
    specs = QuantSpec(4), QuantSpec(3, symmetric=True)
    product = QuantProduct(Scaled(), ProductKind(("v", "w")))
    assert torch.equal(product(a, b), 3 * a @ b)
    q_a, q_b = (UniformAffineQuantizer.fit(x, spec) for x, spec in zip((a, b), specs))
    product.act_quantizer_v = q_a
    assert torch.equal(product(a, b), 3 * q_a(a) @ b)
    product.act_quantizer_w = q_b
    assert torch.equal(product(a, b), 3 * q_a(a) @ q_b(b))
    assert {key.partition(".")[0] for key in product.state_dict()} == {"act_quantizer_v", "act_quantizer_w"}
    product.quantizing = False
    assert torch.equal(product(a, b), 3 * a @ b)


def site(split: tuple[int, ...] | None = None, specs: tuple[QuantSpec, ...] = (SPEC,)) -> ActSite:
    return ActSite("model.conv", nn.Module(), "act_quantizer", specs, split)


def test_a_site_gets_the_quantizer_of_its_observer():
    place, x = site(), gaussian(2, 8)
    place.set(None)
    assert place.quantizer is None
    place.observe(Observer)
    place.quantizer(x)
    place.freeze()
    assert type(place.quantizer) is UniformAffineQuantizer
    assert torch.equal(place.quantizer(x), UniformAffineQuantizer.fit(x, SPEC)(x))


@pytest.mark.parametrize("observer", [Observer, RunningObserver])
def test_a_split_site_observes_each_slice_by_itself(observer):
    place = site((3, 5))
    x = torch.cat([gaussian(4, 3), 50 * gaussian(4, 5, seed=1)], dim=1)
    place.observe(observer)
    seen = place.quantizer(x)
    place.freeze()
    assert type(place.quantizer) is SplitQuantizer
    assert torch.equal(place.quantizer(x), seen)
    small, large = (q.delta.item() for q in place.quantizer.quantizers())
    assert large > 10 * small
    assert not [m for m in place.quantizer.modules() if isinstance(m, Observer)]


@pytest.mark.parametrize("split", [None, (3, 5)])
def test_a_site_with_phases_observes_each_by_itself(split):
    specs = SPEC, QuantSpec(4, symmetric=True), QuantSpec(6)
    place, xs = site(split, specs), [scale * gaussian(4, 8, seed=scale) for scale in (1, 5, 20)]
    place.observe(Observer)
    for phase in (2, 0, 1):
        set_phase([place.quantizer], phase)
        place.quantizer(xs[phase])
    place.freeze()
    for phase, (x, spec) in enumerate(zip(xs, specs)):
        set_phase([place.quantizer], phase)
        assert torch.equal(place.quantizer(x), fit_quantizer(x, spec, split)(x))
    assert type(place.quantizer) is PhaseQuantizer and not per_phase(place.quantizer)[1:]
    state = {f"model.conv.act_quantizer.{key}": x for key, x in place.quantizer.state_dict().items()}
    restored = site(split, specs)
    restored.restore(state, torch.device("cpu"))
    assert [q.spec for q in restored.calibrated.quantizers()] == [q.spec for q in place.calibrated.quantizers()]
    for phase, x in enumerate(xs):
        set_phase([place.quantizer, restored.quantizer], phase)
        assert torch.equal(restored.quantizer(x), place.quantizer(x))


def test_only_a_quantizer_counts_as_calibrated():
    one, split = UniformAffineQuantizer.fit(gaussian(8), SPEC), SplitQuantizer.fit(gaussian(2, 8), SPEC, (3, 5))
    observers = PerSlice([Observer(SPEC), Observer(SPEC)], (3, 5))
    for quantizer in (one, split, PhaseQuantizer([one, split])):
        place = site()
        for missing in (None, Observer(SPEC), observers, PerPhase([observers, observers])):
            place.set(missing)
            with pytest.raises(ValueError, match=r"model\.conv\.act_quantizer is not calibrated"):
                _ = place.calibrated
        place.set(quantizer)
        assert place.calibrated is quantizer


@pytest.mark.parametrize("specs", [(SPEC,), (SPEC, SPEC)])
@pytest.mark.parametrize("split", [None, (3, 5)])
def test_a_site_that_was_never_computed_is_named(split, specs):
    place = site(split, specs)
    place.observe(Observer)
    with pytest.raises(RuntimeError, match=r"model\.conv\.act_quantizer was never computed"):
        place.freeze()
