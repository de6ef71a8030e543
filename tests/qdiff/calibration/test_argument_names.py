import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qdiff.calibration.argument_names import arguments, named_arguments

X, Y = torch.zeros(2), torch.ones(2)


def test_names():
    tensors, constants = named_arguments(
        (X, None, [Y, 3]), {"y": Y, "added": {"text": X, "ids": [Y]}, "flag": False, "nothing": {}}
    )
    assert [*tensors] == ["0", "2.0", "added.ids.0", "added.text", "y"], "positions, then the alphabet"
    assert tensors["added.text"] is X and tensors["y"] is Y
    assert constants == {"1": None, "2.1": 3, "flag": False, "nothing": {}}


LEAVES = st.one_of(st.sampled_from([X, Y]), st.none(), st.booleans(), st.integers(), st.text())
TREES = st.recursive(
    LEAVES, lambda t: st.lists(t, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "c_1"]), t, max_size=3)
)


@given(st.lists(TREES, max_size=12), st.dictionaries(st.sampled_from(["x", "y", "z"]), TREES))
def test_names_lead_back_to_the_arguments(args, kwargs):
    tensors, constants = named_arguments(args, kwargs)
    constants = json.loads(json.dumps(constants))
    found = arguments(dict(sorted({**tensors, **constants}.items())))
    assert same(found, (tuple(args), kwargs))


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return a is b
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"y": torch.float32}, "argument y is a dtype"),
        ({"added": {"f": len}}, "argument added.f is a builtin"),
        ({"added": {1: X}}, "key 1 of the argument added"),
        ({"added": {"a.b": X}}, "key 'a.b' of the argument added"),
    ],
)
def test_what_a_file_cannot_hold(kwargs, message):
    with pytest.raises(ValueError, match=message):
        named_arguments((), kwargs)


@pytest.mark.parametrize("names", [["1"], ["0", "2"], ["0", "y.1"], ["y.0", "y.00"]])
def test_missing_arguments(names):
    with pytest.raises(ValueError, match="some are missing"):
        arguments(dict.fromkeys(names, X))
