"""Errors of widths: planted ones are measured exactly, and a network has those of each width calibrated alone."""

from dataclasses import replace

import pytest
import torch

from diffusion.steps import Step
from qdiff.calibration.act_ranges import find_ranges
from qdiff.calibration.data import CalibrationSet
from qdiff.calibration.phases import by_phase
from qdiff.calibration.settings import CalibrationSettings
from qdiff.files.journal import Journal, temporary_journal
from qdiff.mixed_precision.widths import Widths, of_width
from qdiff.policy import QuantPolicy, QuantSpec
from qdiff.quant_model import QuantModel
from tests.qdiff.adapters.test_third_party import ADAPTER, network
from tests.qdiff.loops import gaussian

POLICY = QuantPolicy(
    QuantSpec(4, per_channel=True, range_search="minmax"),
    QuantSpec(8, range_search="minmax"),
    split=True,
    act_rules=(("model.middle", None), ("model.down.conv", 6)),
)
DATA = CalibrationSet((gaussian(12, 2, 4, 4), torch.arange(12).float()))
SETTINGS = CalibrationSettings(4, None, None)
X = gaussian(2, 2, 4, 4, seed=9)


def model_of(policy: QuantPolicy) -> QuantModel:
    return QuantModel(network(0), policy.without_activations(), ADAPTER).eval()


def test_planted_errors_are_measured():
    """Of each width b, an error of 2^-b that is constant over the image, at two steps of different signals."""
    widths = Widths(model_of(POLICY), {})
    for bits in (4, 8):
        widths.policies[bits] = of_width(POLICY, bits)
        widths.found[bits] = []
    widths.model.sites = lambda: []
    scales = ((7.5, 3.0), (2.0, 0.5))
    steps = [Step(i, t, X, scale * torch.ones_like(X), X, X) for i, (t, scale) in enumerate(scales)]
    counted = []

    def predict(x, t):
        assert torch.equal(x, X) and t.shape == (2,)
        return (3.0 if t[0] == 7.5 else 0.5) + 2.0**-widths.model.policy.act.bits * torch.ones_like(x)

    found = widths.errors(steps, predict, lambda: counted.append(1))
    assert found["t"].tolist() == [7.5, 2.0] and len(counted) == 2
    assert found["signal"].tolist() == [9 * 64, 0.25 * 64]
    for i, bits in enumerate((4, 8)):
        assert found["errors"][:, i].tolist() == [pytest.approx([64 * 4.0**-bits] * 3)] * 2


@pytest.mark.parametrize("phases", [(), ((6, 8),)])
def test_each_width_is_the_network_calibrated_alone(phases, tmp_path):
    policy = replace(POLICY, act_phases=phases)
    widths = Widths(model_of(policy), {bits: of_width(policy, bits) for bits in (4, 8)})
    widths.find(DATA, SETTINGS, lambda bits: Journal(tmp_path / str(bits), {}))
    outputs = {}
    with torch.no_grad():
        for bits in (8, 4, 8):
            widths.use(bits)
            outputs[bits] = [widths.model(X, torch.full((2,), t)) for t in (1.0, 9.0)]
    for bits, found in outputs.items():
        alone = QuantModel(network(0), of_width(policy, bits), ADAPTER).eval()
        with torch.no_grad(), temporary_journal() as journal:
            find_ranges(alone, by_phase(alone, DATA), SETTINGS, journal)
            for t, x in zip((1.0, 9.0), found):
                assert torch.equal(alone(X, torch.full((2,), t)), x)
    assert not torch.equal(outputs[4][0], outputs[8][0])


def test_ranges_that_an_earlier_run_found_are_taken(tmp_path):
    def found(calls: list) -> list[torch.Tensor]:
        widths = Widths(model_of(POLICY), {bits: of_width(POLICY, bits) for bits in (4, 8)})
        widths.model.register_forward_pre_hook(lambda *given: calls.append(1))
        widths.find(DATA, SETTINGS, lambda bits: Journal(tmp_path / str(bits), {}))
        return [q.state_dict()["delta"] for bits in (4, 8) for q in widths.found[bits] if "delta" in q.state_dict()]

    first, again = [], []
    before, after = found(first), found(again)
    assert len(first) == 2 and again == [] and all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_bits_of_a_width_in_all_phases():
    policy = of_width(replace(POLICY, act_phases=((5, 8), (9, 8))), 3)
    assert policy.act.bits == 3 and policy.act_phases == ((5, 3), (9, 3)) and policy.act_rules == POLICY.act_rules
    with pytest.raises(ValueError, match="which this policy leaves in floating point"):
        of_width(POLICY.without_activations(), 4)
