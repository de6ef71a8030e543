"""Criteria against what the planted errors say, and against all choices of bits."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdiff.errors import UserError
from qdiff.mixed_precision.choice import KEY, Choice, Run, choice_of
from qdiff.mixed_precision.criteria import BopsBudget, SignalToNoise
from qdiff.mixed_precision.measurement import Measurement
from qdiff.spectrum import Spectrum

# SNR^F falls with t; Delta of 8 bits is a tenth of that of 4, which has half the norm of eps and, at 0, twice
MEASURED = Measurement(
    timesteps=(0, 250, 500, 750),
    calls=(1, 1, 1, 1),
    forward=(1000.0, 3.0, 1.9, 0.1),
    signal=(100.0, 100.0, 100.0, 100.0),
    errors={
        4: ((400.0, 4.0, 1.0), (25.0, 2.0, 1.0), (25.0, 2.0, 1.0), (25.0, 2.0, 1.0)),
        8: ((4.0, 0.04, 0.01), (0.25, 0.02, 0.01), (0.25, 0.02, 0.01), (0.25, 0.02, 0.01)),
    },
    bops={4: 60, 8: 100},
    images=2,
)
SPECTRUM = Spectrum((0.0, 750.0), (0.1, 1.0), (0.2, 2.0), (0.4, 4.0))


def test_signal_to_noise_ratios():
    assert MEASURED.snr(4) == [0.5, 2, 2, 2] and MEASURED.snr(8) == [5, 20, 20, 20]
    assert MEASURED.snr(4, "power") == [0.25, 4, 4, 4]


@pytest.mark.parametrize(("ratio", "bits"), [("norm", (8, 8, 4, 4)), ("power", (8, 4, 4, 4))])
def test_the_paper_takes_the_fewest_bits_that_exceed_the_forward_process(ratio, bits):
    """At 0 none does, so that the most are taken; at 250 norms have a ratio of 2, powers one of 4, against 3."""
    assert SignalToNoise(ratio).choose(MEASURED) == bits


def test_a_third_width_is_taken_where_the_first_is_too_coarse():
    errors = {4: MEASURED.errors[4], 6: ((5.0, 1.0, 1.0),) * 4, 8: MEASURED.errors[8]}
    measured = replace(MEASURED, errors=errors, bops={4: 60, 6: 80, 8: 100})
    assert SignalToNoise().choose(measured) == (8, 6, 4, 4)


def test_no_error_at_all_is_enough():
    measured = replace(MEASURED, errors={4: ((0.0, 0.0, 0.0),) * 4, 8: MEASURED.errors[8]})
    assert SignalToNoise("power").choose(measured) == (4, 4, 4, 4)


def test_predicted_errors_of_the_image():
    """At 750: S^2 of pixels, of what the grid adds, of what the image adds, times the squares, for one image of two."""
    assert MEASURED.image_errors(4, SPECTRUM)[3] == pytest.approx((1 * 25 + (4 - 1) * 2 + (16 - 4) * 1) / 2)
    assert MEASURED.image_errors(8, SPECTRUM)[0] == pytest.approx((0.01 * 4 + 0.03 * 0.04 + 0.12 * 0.01) / 2)


@pytest.mark.parametrize(
    ("share", "bits"),
    [(1, (8, 8, 8, 8)), (0.9, (8, 4, 8, 8)), (0.8, (4, 4, 8, 8)), (0.7, (4, 4, 4, 8)), (0.6, (4,) * 4)],
)
def test_a_budget_goes_to_the_steps_that_reach_the_image(share, bits):
    assert BopsBudget(share).choose(MEASURED, SPECTRUM) == bits


SQUARES = st.tuples(*[st.floats(0.125, 16, width=32)] * 3)


@given(st.lists(st.tuples(SQUARES, SQUARES), min_size=4, max_size=4), st.floats(0.6, 1))
def test_a_budget_of_two_widths_is_spent_best(squares, share):
    measured = replace(MEASURED, errors={bits: tuple(x[i] for x in squares) for i, bits in enumerate((4, 8))})
    predicted = {bits: measured.image_errors(bits, SPECTRUM) for bits in (4, 8)}

    def error(bits):
        return sum(predicted[b][i] for i, b in enumerate(bits))

    within = [bits for bits in product((4, 8), repeat=4) if measured.trajectory_bops(bits) <= 400 * share + 1e-6]
    chosen = BopsBudget(share).choose(measured, SPECTRUM)
    assert chosen in within and error(chosen) == pytest.approx(min(map(error, within)), rel=1e-9)


def test_a_budget_below_the_fewest_bits():
    message = (
        r"--bops_budget 0.59 is less than 4 bits at all steps take, 0.6000 of the bit operations at 8 bits: raise it"
    )
    with pytest.raises(UserError, match=message):
        BopsBudget(0.59).choose(MEASURED, SPECTRUM)
    with pytest.raises(ValueError, match="needs a spectrum"):
        BopsBudget(0.7).choose(MEASURED, None)


@pytest.mark.parametrize("share", [0, -1, 1.01, float("nan")])
def test_budgets_out_of_range(share):
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        BopsBudget(share)


def test_calls_that_share_a_timestep_are_one_step():
    """As of a sampler that visits one twice, or two within a whole number."""
    measured = Measurement.of_calls(
        [500.25, 500.0, 3.5],
        [0.1, 0.2, 9.0],
        [1.0, 2.0, 4.0],
        {8: [(1, 1, 1), (2, 2, 2), (4, 4, 4)], 4: [(10, 10, 10), (20, 20, 20), (1 / 3, 0, 0)]},
        {4: 1, 8: 2},
        5,
    )
    assert measured.timesteps == (3, 500) and measured.calls == (1, 2) and measured.widths == [4, 8]
    assert measured.signal == (4.0, 3.0) and measured.forward == (9.0, 0.1)
    assert measured.errors[4] == ((0.333333, 0.0, 0.0), (30.0, 30.0, 30.0)), "six digits are kept"
    assert measured.trajectory_bops([4, 8]) == 1 + 2 * 2


@pytest.mark.parametrize(
    "changes",
    [
        {"calls": (1,)},
        {"forward": ()},
        {"errors": {}},
        {"errors": {8: MEASURED.errors[8], 4: MEASURED.errors[4]}},
        {"errors": {4: MEASURED.errors[4]}},
        {"errors": {4: ((1.0, 2.0),) * 4, 8: MEASURED.errors[8]}},
        {"bops": {4: 1, 6: 2}},
    ],
)
def test_values_that_are_no_measurement(changes):
    with pytest.raises(ValueError, match="a measurement has"):
        replace(MEASURED, **changes)


# The record

CHOICES = [Choice.by(SignalToNoise("power"), MEASURED, SPECTRUM), Choice.by(BopsBudget(0.7), MEASURED, SPECTRUM)]


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: type(choice.criterion).__name__)
def test_a_record_is_read_again(choice):
    again = choice_of(json.loads(json.dumps({KEY: choice.to_dict()}, allow_nan=False)), Path("f"))
    assert again == choice and again.by_timestep == dict(zip(MEASURED.timesteps, choice.bits))
    assert (again.spectrum is None) == isinstance(choice.criterion, SignalToNoise)
    assert again.criterion.choose(again.measured, again.spectrum) == again.bits, "it holds all that it went by"


def test_runs_are_in_the_order_of_sampling():
    choice = Choice(SignalToNoise(), replace(MEASURED, calls=(1, 1, 2, 1)), (8, 4, 4, 8))
    assert choice.runs == [Run(8, 750, 750, 1, 100), Run(4, 500, 250, 3, 180), Run(8, 0, 0, 1, 100)]
    assert choice.bops == 380 and choice.share == 380 / 500
    assert str(choice) == (
        "8 bits at 750..750, 4 bits at 500..250, 8 bits at 0..0 (PTQD's criterion, SNR^Q a ratio of norms); 0.760 of "
        "the BOPs of 8 bits"
    )


@pytest.mark.parametrize("bits", [(8, 8, 8), (8, 8, 8, 6)])
def test_bits_that_were_not_measured(bits):
    with pytest.raises(ValueError, match="measured bits at every timestep"):
        Choice(SignalToNoise(), MEASURED, bits)


def test_a_file_without_a_record():
    assert choice_of({"data": 1}, Path("f")) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"criterion": {"name": "other"}},
        {"criterion": {"name": "snr", "ratio": "x"}},
        {"bits": [8]},
        {"bits": None},
        {"measured": {}},
        {"spectrum": 3},
    ],
    ids=str,
)
def test_a_damaged_record(changes):
    record = json.loads(json.dumps(CHOICES[0].to_dict() | changes))
    with pytest.raises(UserError, match=r"^'f' has a damaged record of bits by step \(.*: copy or make it again$"):
        choice_of({KEY: record}, Path("f"))
    with pytest.raises(UserError):
        choice_of({KEY: 3}, Path("f"))
