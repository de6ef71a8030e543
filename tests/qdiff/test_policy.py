"""Policies hold what they say, refuse what is impossible, and survive JSON."""

import json
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdiff.policy import QuantPolicy, QuantSpec
from qdiff.ranges import RANGE_SEARCH

SEARCHES = st.sampled_from(list(RANGE_SEARCH))


def specs(most: int, per_channel: st.SearchStrategy[bool]) -> st.SearchStrategy[QuantSpec]:
    return st.builds(QuantSpec, st.integers(2, most), st.booleans(), per_channel, SEARCHES, st.booleans())


WEIGHTS, ACTIVATIONS = specs(8, st.booleans()), specs(16, st.just(False))
POLICIES = st.builds(QuantPolicy, WEIGHTS, st.none() | ACTIVATIONS, st.integers(2, 16), st.booleans())


@pytest.mark.parametrize("bits", [-8, 0, 1, 4.5, 17, 32])
def test_impossible_bits_are_refused(bits):
    with pytest.raises(ValueError, match=f"bits must be a whole number, 2..16, not {bits}"):
        QuantSpec(bits)
    with pytest.raises(ValueError, match=f"not {bits}"):
        QuantPolicy(softmax_bits=bits)


@pytest.mark.parametrize("bits", [9, 16])
def test_weights_that_do_not_fit_a_byte_are_refused(bits):
    with pytest.raises(ValueError, match=f"weights take 2..8 bits, not {bits}"):
        QuantPolicy(weight=QuantSpec(bits))


def test_activations_per_channel_are_refused():
    with pytest.raises(ValueError, match="one step size per tensor"):
        QuantPolicy(act=QuantSpec(8, per_channel=True))


def test_an_unknown_range_search_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="mse, minmax, max, max_scale, not 'kl'"):
        QuantSpec(8, range_search="kl")


def test_bounds_are_those_of_the_bits():
    assert QuantSpec(4).bounds == (0, 15)
    assert QuantSpec(4, symmetric=True).bounds == (-8, 7)


def test_the_step_of_16_bits_is_not_learned():
    assert QuantSpec(8).step_is_learned
    assert not QuantSpec(16).step_is_learned


def test_descriptions_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        QuantSpec(8).bits = 4
    with pytest.raises(FrozenInstanceError):
        QuantPolicy().split = True


@given(POLICIES)
def test_json_gives_the_same_policy_back(policy):
    assert QuantPolicy.from_dict(json.loads(json.dumps(policy.to_dict()))) == policy


@given(POLICIES)
def test_without_activations_nothing_else_changes(policy):
    weights_only = policy.without_activations()
    assert weights_only.act is None
    assert {**policy.to_dict(), "act": None} == weights_only.to_dict()


def without(key: str) -> dict:
    return {k: v for k, v in QuantPolicy().to_dict().items() if k != key}


@pytest.mark.parametrize(
    "data",
    [
        *(without(key) for key in QuantPolicy().to_dict()),
        {**QuantPolicy().to_dict(), "weight": {"bits": 40}},
        {**QuantPolicy().to_dict(), "weight": {"bits": "four"}},
        {**QuantPolicy().to_dict(), "weight": {"bits": 4, "colour": "red"}},
        {**QuantPolicy().to_dict(), "act": {}},
    ],
)
def test_a_dict_that_is_no_policy_is_refused(data):
    with pytest.raises((KeyError, TypeError, ValueError)):
        QuantPolicy.from_dict(data)
