"""Policies hold what they say, refuse what is impossible, and survive JSON."""

import json
import re
from dataclasses import FrozenInstanceError, replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdiff.policy import QuantPolicy, QuantSpec
from qdiff.ranges import RANGE_SEARCH

SEARCHES = st.sampled_from(list(RANGE_SEARCH))


def specs(most: int, per_channel: st.SearchStrategy[bool]) -> st.SearchStrategy[QuantSpec]:
    return st.builds(QuantSpec, st.integers(2, most), st.booleans(), per_channel, SEARCHES, st.booleans())


WEIGHTS, ACTIVATIONS = specs(8, st.booleans()), specs(16, st.just(False))
PATTERNS = st.sampled_from(["*", "model.*", "model.mid.*", "*.conv_in", "model.mid.attn.smv_matmul", "*.w", "other"])


def rules(bits: st.SearchStrategy[int | None]) -> st.SearchStrategy[tuple]:
    return st.lists(st.tuples(PATTERNS, bits), max_size=4).map(tuple)


WEIGHT_RULES, ACT_RULES = rules(st.integers(2, 8)), rules(st.none() | st.integers(2, 16))
BITS = st.integers(2, 16)
PHASES = st.dictionaries(st.integers(1, 999), BITS, max_size=3).map(lambda phases: tuple(sorted(phases.items())))
REST = st.integers(2, 16), st.booleans(), WEIGHT_RULES
POLICIES = st.builds(QuantPolicy, WEIGHTS, st.none(), *REST) | st.builds(
    QuantPolicy, WEIGHTS, ACTIVATIONS, *REST, ACT_RULES, PHASES
)


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
    with pytest.raises(ValueError, match="mse, minmax, margin, max, max_scale, not 'kl'"):
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
    expected = {**policy.to_dict(), "act": None}
    expected.pop("act_rules", None)
    expected.pop("act_phases", None)
    assert weights_only.to_dict() == expected
    assert weights_only.act_for("model.conv_in") is None


def test_without_rules_or_phases_the_description_does_not_mention_them():
    """So that files and journals of uniform policies are those of earlier versions."""
    assert list(QuantPolicy(act=QuantSpec(8)).to_dict()) == ["weight", "act", "softmax_bits", "split"]


W4, A8 = QuantSpec(4, symmetric=True, per_channel=True), QuantSpec(8, symmetric=True, range_search="max")


def test_the_last_rule_that_matches_decides():
    policy = QuantPolicy(W4, A8, weight_rules=(("model.mid.*", 6), ("*.conv_in", 8), ("model.mid.a.*", 3)))
    paths = ("model.conv_in", "model.mid.b.conv_in", "model.mid.a.conv_in", "model.mid.b.conv", "model.middle")
    assert [policy.weight_for(path).bits for path in paths] == [8, 8, 3, 6, 4]
    assert policy.weight_for("model.conv_in") == replace(W4, bits=8), "nothing but the bits changes"
    assert {policy.act_for(path) for path in paths} == {A8}


def test_activations_have_rules_of_their_own():
    policy = QuantPolicy(W4, A8, act_rules=(("model.mid.*", None), ("model.mid.a.*", 6)))
    assert policy.act_for("model.mid.b") is None
    assert policy.act_for("model.mid.a.conv") == replace(A8, bits=6)
    assert policy.act_for("model.out") == A8
    assert {policy.weight_for(path) for path in ("model.mid.b", "model.mid.a.conv")} == {W4}


@pytest.mark.parametrize(
    ("rules", "bits"),
    [
        ((), (8, 16)),
        ((("*.product", 6),), (6, 6)),
        ((("*.product.w", 6),), (8, 6)),
        ((("*.product", 6), ("*.w", 12)), (6, 12)),
        ((("*.w", 12), ("*.product", None)), (None, None)),
        ((("model.a", 6),), (8, 16)),
    ],
)
def test_a_rule_is_for_both_operands_or_for_the_one_that_it_names(rules, bits):
    policy = QuantPolicy(W4, A8, softmax_bits=16, act_rules=rules)
    v, w = policy.act_for("model.a.product", "v"), policy.act_for("model.a.product", "w", softmax=True)
    assert (v and v.bits, w and w.bits) == bits


@given(WEIGHT_RULES, st.sampled_from(["model.conv_in", "model.mid.attn.smv_matmul", "model.mid.conv"]))
def test_later_rules_replace_earlier_ones(rules, path):
    """The bits are found by applying the rules one after the other."""
    bits = 4
    for pattern, value in rules:
        if re.fullmatch(pattern.replace(".", r"\.").replace("*", ".*"), path):
            bits = value
    assert QuantPolicy(W4, weight_rules=rules).weight_for(path).bits == bits


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"weight_rules": (("*", 9),)}, "weights take 2..8 bits, not 9"),
        ({"weight_rules": (("*", None),)}, "weights take 2..8 bits, not None"),
        ({"act_rules": (("*", 17),)}, "activations take 2..16 bits, not 17"),
        ({"act_rules": (("*", 4.0),)}, "activations take 2..16 bits, not 4.0"),
        ({"weight_rules": ("ab",)}, "a rule is a pattern and its bits"),
        ({"weight_rules": (("a", 8, 9),)}, "a rule is a pattern and its bits"),
        ({"act": None, "act_rules": (("*", 8),)}, "rules for activations need `act`"),
    ],
)
def test_an_impossible_rule_is_refused(wrong, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        QuantPolicy(**{"weight": W4, "act": A8, **wrong})


PHASED = QuantPolicy(W4, A8, softmax_bits=16, act_phases=((10, 4), (600, 6)))


@pytest.mark.parametrize(
    ("t", "phase"),
    [(0, 0), (9, 0), (9.99, 0), (10, 1), (10.0, 1), (599, 1), (599.999, 1), (600, 2), (999, 2), (1e9, 2)],
)
def test_a_phase_begins_at_its_first_timestep(t, phase):
    assert PHASED.phase_of(t) == phase and QuantPolicy(W4, A8).phase_of(t) == 0


@given(PHASES, st.floats(0, 1200))
def test_the_phase_is_the_number_of_beginnings_up_to_a_timestep(phases, t):
    policy = QuantPolicy(W4, A8, act_phases=phases)
    assert policy.phase_of(t) == sum(first <= t for first, _ in phases) in policy.phases


def test_phases_change_bits_and_nothing_else():
    assert [PHASED.act_for("model.a", phase=i) for i in PHASED.phases] == [replace(A8, bits=b) for b in (8, 4, 6)]
    assert PHASED.act_for("model.a") == A8 == QuantPolicy(W4, A8).act_for("model.a")
    assert {PHASED.weight_for("model.a")} == {W4}
    assert [PHASED.timesteps_of(i) for i in PHASED.phases] == ["0..9", "10..599", "from 600 on"]


TIMESTEPS = st.lists(st.integers(0, 999), min_size=2, max_size=40, unique=True)


@given(TIMESTEPS, st.integers(2, 10))
def test_groups_of_steps_are_consecutive_and_of_equal_size(timesteps, groups):
    groups = min(groups, len(timesteps))
    grouped = QuantPolicy(W4, A8, softmax_bits=16).grouped(timesteps, groups)
    phases = [grouped.phase_of(t) for t in sorted(timesteps)]
    sizes = [phases.count(phase) for phase in grouped.phases]
    assert len(sizes) == groups and phases == sorted(phases) and max(sizes) - min(sizes) <= 1
    assert {grouped.act_for("model.a", phase=i) for i in grouped.phases} == {A8}
    assert replace(grouped, act_phases=()) == QuantPolicy(W4, A8, softmax_bits=16)


def test_groups_of_steps_between_integers():
    """As those of DPM-Solver."""
    grouped = QuantPolicy(W4, A8).grouped([999.0, 749.25, 499.5, 249.75], 4)
    assert [grouped.phase_of(t) for t in (249.75, 499.5, 749.25, 999.0)] == [0, 1, 2, 3]


def test_timesteps_that_a_sampler_visits_twice_count_once():
    assert QuantPolicy(W4, A8).grouped([9, 5, 5, 0], 3).act_phases == ((5, 8), (9, 8))


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (PHASED, "act_phases cannot be divided into groups of steps"),
        (QuantPolicy(W4), "which this policy leaves in float"),
    ],
)
def test_policies_that_cannot_be_grouped(policy, message):
    with pytest.raises(ValueError, match=message):
        policy.grouped([1, 2, 3], 2)


@given(st.dictionaries(st.integers(0, 999), st.sampled_from([3, 4, 8]), min_size=1, max_size=9), st.integers(1, 3))
def test_bits_by_step_are_in_as_few_phases_as_possible(bits, groups):
    policy = QuantPolicy(W4, A8, softmax_bits=16, act_rules=(("model.a", 5),)).by_step(bits, groups)
    steps = sorted(bits)
    for t in steps:
        assert policy.act_for("model.b", phase=policy.phase_of(t)).bits == bits[t]
        assert policy.act_for("model.a", phase=policy.phase_of(t)).bits == 5
    changes = sum(bits[a] != bits[b] for a, b in pairwise(steps))
    assert changes <= len(policy.act_phases) <= changes + groups - 1
    assert policy.by_step(bits, groups) == policy, "phases that it had do not count"


def test_bits_by_step_need_activations():
    with pytest.raises(ValueError, match="which this policy leaves in floating point"):
        QuantPolicy(W4).by_step({0: 8})


def test_attention_weights_and_rules_keep_their_bits_in_all_phases():
    policy = replace(PHASED, act_rules=(("model.a", 5), ("*.product.v", 7), ("model.b", None)))
    for i, bits in enumerate((8, 4, 6)):
        found = {
            "rule": policy.act_for("model.a", phase=i),
            "operand": policy.act_for("model.product", "v", phase=i),
            "softmax": policy.act_for("model.product", "w", softmax=True, phase=i),
            "other": policy.act_for("model.c", phase=i),
        }
        assert {name: spec.bits for name, spec in found.items()} == {
            "rule": 5,
            "operand": 7,
            "softmax": 16,
            "other": bits,
        }
        assert policy.act_for("model.b", phase=i) is None


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        (((0, 4),), "an integer above 0 here, and its bits, as in (600, 4), not (0, 4)"),
        (((-3, 4),), "not (-3, 4)"),
        (((600, 4), (600, 5)), "an integer above 600 here, and its bits, as in (600, 4), not (600, 5)"),
        (((600, 4), (10, 5)), "not (10, 5)"),
        (((600.0, 4),), "not (600.0, 4)"),
        ((600, 4), "not 600"),
        (((600, 4, 4),), "not (600, 4, 4)"),
        (((600, 17),), "activations take 2..16 bits, not 17"),
        (((600, None),), "activations take 2..16 bits, not None"),
    ],
)
def test_impossible_phases_are_refused(phases, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        QuantPolicy(W4, A8, act_phases=phases)
    with pytest.raises(ValueError, match="phases for activations need `act`"):
        QuantPolicy(W4, act_phases=((600, 4),))


LAYERS, OPERANDS = ["model.conv_in", "model.mid.conv"], ["model.mid.product", "model.mid.product.w"]


@pytest.mark.parametrize(
    ("rules", "hint"),
    [
        (
            {"weight_rules": (("model.mid", 8),)},
            "'model.mid' matches no layer of the network: did you mean model.mid.*?",
        ),
        ({"weight_rules": (("conv_in", 8),)}, "did you mean model.conv_in?"),
        ({"act_rules": (("mid", None),)}, "did you mean model.mid.*?"),
        ({"weight_rules": (("model.conv_im", 8),)}, "did you mean model.conv_in?"),
        ({"weight_rules": (("*", 4), ("xyz", 8))}, "'xyz' matches no layer of the network: its layers have paths as"),
        ({"weight_rules": (("*.product", 8),)}, "'*.product' matches no layer"),
    ],
)
def test_a_rule_that_matches_nothing_is_refused_with_a_suggestion(rules, hint):
    with pytest.raises(ValueError, match=re.escape(hint)):
        QuantPolicy(W4, A8, **rules).check_rules(LAYERS, OPERANDS)


def test_rules_that_match_layers_or_operands_are_accepted():
    act_rules = (("model.conv_in", None), ("*.product", 8), ("*.w", 8))
    QuantPolicy(W4, A8, weight_rules=(("*.conv", 8),), act_rules=act_rules).check_rules(LAYERS, OPERANDS)


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
        {**QuantPolicy().to_dict(), "weight_rules": [["model.conv_in", 9]]},
        {**QuantPolicy().to_dict(), "weight_rules": ["model.conv_in"]},
        {**QuantPolicy().to_dict(), "weight_rules": 8},
        {**QuantPolicy().to_dict(), "act_rules": [["model.conv_in", 8]]},
        {**QuantPolicy().to_dict(), "act_phases": [[600, 8]]},
        {**QuantPolicy(act=QuantSpec(8)).to_dict(), "act_phases": [600, 8]},
        {**QuantPolicy(act=QuantSpec(8)).to_dict(), "act_phases": {"600": 8}},
    ],
)
def test_a_dict_that_is_no_policy_is_refused(data):
    with pytest.raises((KeyError, TypeError, ValueError)):
        QuantPolicy.from_dict(data)
