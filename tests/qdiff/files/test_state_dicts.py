"""State dicts are found wherever trainers put them, with what the place says about them."""

from collections import OrderedDict

import pytest
import torch

from qdiff.errors import UserError
from qdiff.files.state_dicts import StateDict, find_state_dicts, read_state_dicts

W = {"conv.weight": torch.ones(2, 2), "conv.bias": torch.zeros(2)}
OPTIMIZER = {
    "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2, 2), "exp_avg_sq": torch.ones(1)}},
    "param_groups": [{"lr": 0.1}],
}


def places(content) -> dict[str, bool]:
    """Place -> averaged, of the state dicts with the two weights."""
    return {s.place: s.averaged for s in find_state_dicts(content) if len(s.tensors) == len(W)}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (W, {"": False}),
        (OrderedDict(W), {"": False}),
        (dict(W) | {"global_step": 470000, "config": {"lr": 1.0}, 3: "x"}, {"": False}),
        ({"state_dict": W, "epoch": 3, "callbacks": {}, "optimizer_states": [OPTIMIZER]}, {"state_dict": False}),
        ({"state_dict": {"model": W}}, {"state_dict.model": False}),
        ({"model_state_dict": W, "optimizer_state_dict": OPTIMIZER}, {"model_state_dict": False}),
        ({"params": W, "params_ema": W}, {"params": False, "params_ema": True}),
        ({"model": W, "model_ema": W}, {"model": False, "model_ema": True}),
        ({"ema": {"module": W}}, {"ema.module": True}),
        ({"EMA": W, "schema": W}, {"EMA": True, "schema": False}),
        ({"ema": {"online_model": W, "ema_model": W}}, {"ema.online_model": False, "ema.ema_model": True}),
        ([W, OPTIMIZER, 7, 1000, W], {"[0]": False, "[4]": True}),
        ([W, OPTIMIZER, 7, 1000], {"[0]": False}),
    ],
)
def test_places(content, expected):
    assert places(content) == expected


@pytest.mark.parametrize("content", [None, 5, [], {}, [[]], {"state_dict": {}}, torch.ones(2), {"a": 1}])
def test_nothing_by_name(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"x\.pth' contains no named tensors but "):
        read_state_dicts(tmp_path / "x.pth")


def test_a_list_that_holds_itself_ends(tmp_path):
    loop = []
    loop.append(loop)
    torch.save(loop, tmp_path / "loop.pt")
    with pytest.raises(UserError):
        read_state_dicts(tmp_path / "loop.pt")


def test_nothing_requires_a_gradient():
    [found] = find_state_dicts({key: torch.nn.Parameter(x) for key, x in W.items()})
    assert not any(x.requires_grad for x in found.tensors.values())


@pytest.mark.parametrize("level", ["module.{}", "_orig_mod.{}", "module._orig_mod.{}", "_orig_mod.module.{}"])
def test_levels_of_wrappers_go_wherever_they_are(level):
    wrapped = StateDict("", {level.format(key): x for key, x in W.items()}, False)
    assert wrapped.unwrapped().tensors.keys() == W.keys()
    within = StateDict("", {f"model.{level.format(key)}": x for key, x in W.items()}, False)
    assert within.unwrapped().tensors.keys() == {f"model.{key}" for key in W}


def test_names_that_would_become_one_stay():
    state = StateDict("", {"module.a": torch.ones(1), "a": torch.ones(1)}, False)
    assert state.unwrapped() is state


def test_a_prefix_is_a_place():
    tensors = {f"{prefix}{key}": x for prefix in ("", "ema.") for key, x in W.items()}
    state = StateDict("net", tensors, False)
    own, averages = state.under("", ["ema."]), state.under("ema.")
    assert (own.place, own.averaged, own.outside) == ("net", False, 2)
    assert (averages.place, averages.averaged, averages.outside) == ("net.ema", True, 2)
    assert own.tensors.keys() == averages.tensors.keys() == W.keys()
