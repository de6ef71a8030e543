"""Activations quantized by phase: each phase is the uniform network with its numbers, and the timestep chooses it."""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from qdiff.adapters import Adapter
from qdiff.calls import Call
from qdiff.checkpoints.load import load_as_written, load_quantized, load_rounding, save_quantized
from qdiff.checkpoints.validate import shapes_of, state_shapes
from qdiff.errors import UserError
from qdiff.observers import Observer, RunningObserver
from qdiff.phases import PhaseQuantizer, per_phase
from qdiff.policy import QuantPolicy, QuantSpec
from qdiff.quant_layer import SplitQuantizer
from qdiff.quant_model import QuantModel
from tests.qdiff.adapters.test_third_party import ADAPTER, network
from tests.qdiff.loops import gaussian

PHASED = QuantPolicy(
    QuantSpec(4, per_channel=True, range_search="minmax"),
    QuantSpec(8, range_search="minmax"),
    softmax_bits=5,
    split=True,
    act_rules=(("model.middle", None), ("model.down.conv", 6)),
    act_phases=((10, 3), (600, 4)),
)
BITS, TIMES = (8, 3, 4), (4, 20, 700)  # of each phase, and a timestep in it


def at(t: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images of a batch, wider at later timesteps, and the timestep of each."""
    return (1 + t / 100) * gaussian(3, 2, 4, 4, seed=seed), torch.full((3,), t)


def calibrated(policy: QuantPolicy = PHASED, times: Sequence[float] = TIMES, adapter: Adapter = ADAPTER) -> QuantModel:
    model = QuantModel(network(0), policy, adapter).eval()
    with model.observing(Observer):
        for t in times:
            model(*at(t))
    return model


def uniform(model: QuantModel, phase: int) -> QuantModel:
    """The network without phases that has the numbers of one of them."""
    policy = replace(PHASED, act=replace(PHASED.act, bits=BITS[phase]), act_phases=())
    return QuantModel.from_state(network(0), policy, ADAPTER, numbers_of(model.quantized_state(), phase))


def numbers_of(state: Mapping[str, Tensor], phase: int) -> dict[str, Tensor]:
    mine = {key.replace(f".phases.{phase}.", "."): x for key, x in state.items()}
    return {key: x for key, x in mine.items() if ".phases." not in key}


@torch.no_grad()
def output(model: nn.Module, t: float) -> Tensor:
    return model(*at(t, seed=1))


@pytest.mark.parametrize("t", [0, 9, 9.5, 10, 100, 599, 599.5, 600, 999])
def test_every_phase_is_the_uniform_network_with_its_numbers(t):
    model = calibrated()
    outputs = [output(uniform(model, phase), t) for phase in PHASED.phases]
    assert not any(torch.equal(outputs[i], outputs[j]) for i, j in ((0, 1), (1, 2), (2, 0)))
    assert torch.equal(output(model, t), outputs[PHASED.phase_of(t)])


def test_every_phase_has_the_ranges_of_its_own_samples():
    model = calibrated()
    for phase, t in enumerate(TIMES):
        policy = replace(PHASED, act=replace(PHASED.act, bits=BITS[phase]), act_phases=())
        alone = calibrated(policy, (t,)).quantized_state()
        mine = numbers_of(model.quantized_state(), phase)
        assert mine.keys() == alone.keys() and all(torch.equal(x, alone[key]) for key, x in mine.items())


@pytest.mark.parametrize("kind", [Observer, RunningObserver])
def test_equal_phases_are_as_none(kind):
    """With equal bits, and the same data and numbers in each, whatever the timestep."""
    policy, model = replace(PHASED, act_phases=()), QuantModel(network(0), PHASED, ADAPTER).eval()
    model.policy = replace(PHASED, act_phases=((10, 8), (600, 8)))
    plain = QuantModel(network(0), policy, ADAPTER).eval()
    with model.observing(kind), plain.observing(kind):
        for seed in range(3):
            x, _ = at(50, seed)
            plain(x, torch.zeros(3))
            for t in (0, 10, 600):
                model.adapter = replace(ADAPTER, timestep=lambda x, noise, t=t: t)
                model(x, torch.zeros(3))
    model.adapter = ADAPTER
    for t in TIMES:
        assert torch.equal(output(model, t), output(plain, t))


def test_attention_weights_slices_and_rules_have_parts_for_each_phase():
    sites = {f"{site.path}.{site.name}": site for site in calibrated().sites()}
    bits = {name: [q.spec.bits for q in site.calibrated.quantizers()] for name, site in sites.items()}
    assert bits.pop("model.attention.average.act_quantizer_share") == [5, 5, 5]
    assert bits.pop("model.down.conv.act_quantizer") == [6, 6, 6]
    assert bits.pop("model.up.shortcut.act_quantizer") == [8, 8, 3, 3, 4, 4]
    assert "model.middle.act_quantizer" not in bits and set(map(tuple, bits.values())) == {BITS}
    split = sites["model.up.shortcut.act_quantizer"].quantizer
    assert isinstance(split, PhaseQuantizer) and all(isinstance(part, SplitQuantizer) for part in split)
    assert all(site.step_is_learned for site in sites.values())


def test_a_policy_without_phases_has_none_and_a_forward_looks_for_none(monkeypatch):
    monkeypatch.setattr(QuantModel, "_enter_phase", None)
    plain = replace(PHASED, act_phases=())
    model = calibrated(plain, TIMES, replace(ADAPTER, timestep=None))
    assert per_phase(model) == [] and not model.has_phases
    assert not any("phases" in key for key in model.state_dict())
    x, _ = at(5)
    assert model(x, torch.tensor([0, 100, 900])).shape == x.shape


def test_a_batch_in_several_phases_is_refused_where_it_matters():
    mixed = gaussian(3, 2, 4, 4), torch.tensor([3.0, 700.0, 20.0])
    fresh, model = QuantModel(network(0), PHASED, ADAPTER), calibrated()
    assert model.has_phases and not fresh.has_phases
    assert model.phases_of(Call(mixed)) == [0, 2, 1]
    message = "a batch has timesteps 0..9 and 10..599 and from 600 on, where activations differ in their bits"
    with pytest.raises(ValueError, match=re.escape(message)):
        model(*mixed)
    fresh(*mixed)  # whose activations are in floating point
    with model.full_precision():
        assert not model.has_phases
        assert torch.equal(model(*mixed), network(0)(*mixed))
    model(mixed[0], torch.tensor([10, 20, 599]))


class Conditioned(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x, t=None, **others):
        return self.layer(x)


def conditioned(name: str = "t", **adapter) -> QuantModel:
    policy = QuantPolicy(act=QuantSpec(8, range_search="minmax"), act_phases=((600, 2),))
    model = QuantModel(Conditioned(), policy, Adapter(family="toy", **adapter))
    with model.observing(Observer):
        for t in (0, 1000):
            model(gaussian(5, 4), **{name: t})
    return model


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    "form", [float, torch.tensor, lambda t: torch.full((5,), t), lambda t: torch.full((5,), int(t))]
)
@pytest.mark.parametrize("place", [None, "t", "timestep", "timesteps"])
def test_where_the_timestep_is_and_what_it_may_be(late, form, place):
    model = conditioned()
    t = form(600.0 if late else 599.0)
    _ = model(gaussian(5, 4), t) if place is None else model(gaussian(5, 4), **{place: t})
    assert [part.active for part in per_phase(model)] == [late]
    assert model.phases_of(Call((gaussian(5, 4), t))) == [late] * 5


def test_an_adapter_may_tell_where_the_timestep_is():
    model = conditioned("step", timestep=lambda x, *, step, **others: 1000 * step)
    for step, phase in ((0.7, 1), (0.3, 0)):
        model(gaussian(5, 4), step=step, t=900 - 1000 * step)
        assert [part.active for part in per_phase(model)] == [phase]


def test_a_network_without_a_timestep_says_what_to_do():
    with pytest.raises(ValueError, match=re.escape("with Adapter(timestep=...)")):
        conditioned()(gaussian(5, 4), noise=3)


def test_after_an_error_while_observing_everything_is_as_before():
    model = calibrated()
    before = [site.quantizer for site in model.sites()]
    with pytest.raises(RuntimeError, match="was never computed"), model.observing(Observer):
        model(*at(TIMES[0]))
        model(*at(TIMES[2]))
    assert all(site.quantizer is quantizer for site, quantizer in zip(model.sites(), before, strict=True))


def test_a_copy_has_a_phase_of_its_own():
    model = calibrated()
    output(model, TIMES[1])
    other = copy.deepcopy(model)
    assert {part.active for part in per_phase(other)} == {1}
    expected = output(model, TIMES[2])
    assert {part.active for part in per_phase(other)} == {1} and {part.active for part in per_phase(model)} == {2}
    assert torch.equal(output(other, TIMES[2]), expected)


def test_moving_and_state_dicts():
    model, other = calibrated(), calibrated(times=(9, 599, 999))
    assert not torch.equal(output(model, 700), output(other, 700))
    other.load_state_dict(model.state_dict())
    for t in TIMES:
        assert torch.equal(output(model, t), output(other, t))
    doubles = copy.deepcopy(model).double()
    assert {q.delta.dtype for site in doubles.sites() for q in site.calibrated.quantizers()} == {torch.float64}
    x, t = at(TIMES[1])
    assert doubles(x.double(), t).dtype == torch.float64


def test_the_state_is_what_a_file_of_the_policy_must_hold():
    assert shapes_of(calibrated().quantized_state()) == state_shapes(network(0), PHASED, ADAPTER)
    keys = [key for key in calibrated().quantized_state() if key.startswith("model.up.shortcut.act_quantizer")]
    assert keys == [
        f"model.up.shortcut.act_quantizer.phases.{phase}.parts.{part}.{field}"
        for phase in range(3)
        for part in range(2)
        for field in ("delta", "zero_point")
    ]


@pytest.mark.parametrize("low_memory", [False, True])
def test_a_loaded_network_is_the_saved_one(low_memory, tmp_path):
    model = calibrated()
    save_quantized(tmp_path / "q", model)
    flags = {"act_bit": 8, "sm_abit": 5, "split": True}
    for again in (
        load_quantized(network(100), tmp_path / "q", **flags, adapter=ADAPTER, low_memory=low_memory),
        load_as_written(network(100), tmp_path / "q", adapter=ADAPTER, low_memory=low_memory),
    ):
        assert again.policy == PHASED
        for t in TIMES:
            assert torch.equal(output(again, t), output(model, t))
    weights = load_quantized(network(100), tmp_path / "q", split=True, adapter=ADAPTER, low_memory=low_memory)
    assert weights.policy.act_phases == () and weights.sites() == []
    mixed = gaussian(3, 2, 4, 4), torch.tensor([3.0, 700.0, 20.0])
    assert torch.equal(weights(*mixed), QuantModel(network(0), PHASED, ADAPTER)(*mixed))


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_the_bits_of_any_phase_agree_with_a_file(bits, tmp_path):
    save_quantized(tmp_path / "q", calibrated())
    again = load_quantized(network(100), tmp_path / "q", act_bit=bits, sm_abit=5, split=True, adapter=ADAPTER)
    assert again.policy == PHASED


def test_other_bits_than_those_of_the_phases(tmp_path):
    save_quantized(tmp_path / "q", calibrated())
    with pytest.raises(UserError, match="has activations of 3 or 4 or 8 bits: give --act_bit 3 or 4 or 8"):
        load_quantized(network(100), tmp_path / "q", act_bit=6, sm_abit=5, split=True, adapter=ADAPTER)


def test_phases_can_be_added_to_the_rounding_of_a_file(tmp_path):
    save_quantized(tmp_path / "q", calibrated(replace(PHASED, act_phases=())))
    again = load_rounding(network(0), tmp_path / "q", PHASED, adapter=ADAPTER)
    assert not again.has_phases and [len(site.specs) for site in again.sites()] == [3] * len(again.sites())
    with again.observing(Observer):
        for t in TIMES:
            again(*at(t))
    assert all(torch.equal(output(again, t), output(calibrated(), t)) for t in TIMES)


def test_observers_are_not_saved(tmp_path):
    model = calibrated()
    site = model.sites()[0]
    site.observe(Observer)
    with pytest.raises(ValueError, match="not calibrated"):
        save_quantized(tmp_path / "q", model)
