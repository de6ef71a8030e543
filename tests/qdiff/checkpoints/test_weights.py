"""Which tensors of a file become the network's weights: every wrapping of the field, dtypes, and what is refused."""

import logging
import sys

import pytest
import torch
from safetensors.torch import save_file

from ddim.models.diffusion import Model
from qdiff.checkpoints.weights import load_weights
from qdiff.errors import UserError
from tests.tiny import tiny_config, tiny_network

FP8 = [torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.fixture(scope="module")
def good() -> dict[str, torch.Tensor]:
    return tiny_network().state_dict()


@pytest.fixture(scope="module")
def bad(good) -> dict[str, torch.Tensor]:
    """Weights of the same network with other numbers."""
    return {key: x + 1 for key, x in good.items()}


def renamed(state, pattern: str) -> dict[str, torch.Tensor]:
    return {pattern.format(key): x for key, x in state.items()}


@pytest.fixture
def loaded(tmp_path):
    """Save what a trainer would, load it into a network, and return its state dict."""

    def load(content, *, averages=None, save=torch.save):
        save(content, tmp_path / "model.pth")
        with torch.device("meta"):
            network = Model(tiny_config())
        load_weights(network, tmp_path / "model.pth", averages=averages)
        return network.state_dict()

    return load


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: w,
        lambda w: {"state_dict": w, "epoch": 3},
        lambda w: {"model": w},
        lambda w: {"ema": w},
        lambda w: {"model_ema": w},
        lambda w: {"model_state_dict": w, "optimizer_state_dict": OPTIMIZER},
        lambda w: {"params": w},
        lambda w: {"params_ema": w},
        lambda w: {"state_dict": {"model": w}, "rng": torch.ones(5000)},
        lambda w: dict(w) | {"global_step": 470000},
        lambda w: renamed(w, "module.{}"),
        lambda w: renamed(w, "_orig_mod.{}"),
        lambda w: renamed(w, "module._orig_mod.{}"),
        lambda w: {"state_dict": renamed(w, "model.{}")},
        lambda w: renamed(w, "model.diffusion_model._orig_mod.{}") | {"betas": torch.ones(3)},
        lambda w: {key.replace(".conv1", "._orig_mod.conv1"): x for key, x in w.items()},
        lambda w: {key.replace("down.", "down._fsdp_wrapped_module."): x for key, x in w.items()},
        lambda w: renamed(w, "module.{}") | {"n_averaged": torch.tensor(5)},
        lambda w: [renamed(w, "module.{}"), OPTIMIZER, 7, 1000],
        lambda w: {"generator": w, "discriminator": {"conv.weight": torch.ones(2)}},
    ],
)
def test_one_set_of_weights_is_found_wherever_it_stands(loaded, good, wrap):
    assert same(loaded(wrap(good)), good)


@pytest.mark.parametrize("averages", [True, False])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda raw, ema: {"model": raw, "ema": ema},
        lambda raw, ema: {"params": raw, "params_ema": ema},
        lambda raw, ema: {"state_dict": raw, "ema_state_dict": renamed(ema, "module.{}")},
        lambda raw, ema: {"model": raw, "ema": {"decay": 0.999, "shadow": ema}},
        lambda raw, ema: {"ema": {"online_model": raw, "ema_model": ema}},
        lambda raw, ema: [renamed(raw, "module.{}"), OPTIMIZER, 7, 1000, ema],
        lambda raw, ema: renamed(raw, "model.{}") | renamed(ema, "ema_model.{}"),
        lambda raw, ema: dict(raw) | renamed(ema, "ema.{}"),
    ],
)
def test_of_weights_and_their_averages_the_configuration_decides(loaded, good, bad, caplog, wrap, averages):
    caplog.set_level(logging.INFO)
    content = wrap(bad, good) if averages else wrap(good, bad)
    assert same(loaded(content, averages=averages), good)
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("averages from " if averages else "weights from ")
    assert "left out" in line and "model.pth" in line


@pytest.mark.parametrize(
    ("wrap", "names", "remedy"),
    [
        (lambda a, b: {"model": a, "ema": b}, ["'model'", "'ema'"], "model.ema"),
        (lambda a, b: [a, OPTIMIZER, 7, 1000, b], ["'[0]'", "'[4]'"], "model.ema"),
        (lambda a, b: {"netG": a, "netG_old": b}, ["'netG'", "'netG_old'"], "one of them"),
    ],
)
def test_several_sets_without_a_word_in_the_configuration(loaded, good, bad, wrap, names, remedy):
    with pytest.raises(UserError) as error:
        loaded(wrap(good, bad))
    message = str(error.value)
    assert all(name in message for name in names) and remedy in message and "\n" not in message


class Helper:
    """Holds averages as trainers' helpers do."""

    def __init__(self, shadow):
        self.shadow = shadow


def test_averages_in_a_helper_and_in_a_tuple(loaded, good, bad, monkeypatch):
    monkeypatch.setattr(Helper, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "Helper", Helper, raising=False)
    for content in (
        {"model": bad, "ema": Helper(good)},
        (bad, OPTIMIZER, 7, 1000, good),
        {"model": bad, "ema": (good,)},
    ):
        assert same(loaded(content, averages=True), good)


@pytest.mark.parametrize("wrap", [list, tuple, lambda xs: dict(enumerate(xs)), lambda xs: Helper(list(xs))])
def test_averages_without_names_are_not_passed_over(loaded, good, bad, wrap, monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "Helper", Helper, raising=False)
    monkeypatch.setattr(Helper, "__module__", "__main__")
    content = {"model": good, "ema": {"decay": 0.999, "shadow_params": wrap(bad.values())}}
    with pytest.raises(UserError, match=r"averages under 'ema\.shadow_params.*ema: false"):
        loaded(content, averages=True)
    assert same(loaded(content, averages=False), good)
    assert same(loaded(content), good)


@pytest.mark.parametrize("name", [lambda key: key.replace(".", ""), lambda key: key.replace(".", "_")])
def test_averages_under_other_names_are_not_passed_over(loaded, good, bad, name):
    averages = {name(key): x for key, x in bad.items()}
    flat = renamed(good, "model.{}") | renamed(averages, "model_ema.{}")
    for content in (flat, {"model": good, "ema": averages}):
        with pytest.raises(UserError, match="without the names"):
            loaded(content, averages=True)
        assert same(loaded(content, averages=False), good)


def test_the_same_tensors_under_two_keys_are_one_set(loaded, good):
    assert same(loaded({"model": good, "state_dict": good, "ema": good}), good)


def test_two_sets_of_averages(loaded, good, bad):
    with pytest.raises(UserError, match=r"ema_0\.99'.*'ema_0\.999'"):
        loaded({"ema_0.99": good, "ema_0.999": bad}, averages=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, *FP8])
@pytest.mark.parametrize("save", [torch.save, save_file])
def test_floating_point_numbers_are_converted(loaded, good, caplog, dtype, save):
    caplog.set_level(logging.INFO)
    rounded = {key: x.to(dtype) for key, x in good.items()}
    found = loaded(rounded, save=save)
    assert all(x.dtype == torch.float32 for x in found.values())
    assert same(found, {key: x.float() for key, x in rounded.items()})
    assert str(dtype).removeprefix("torch.") in caplog.text


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64])
def test_other_numbers_are_refused_by_key_and_dtype(loaded, good, dtype):
    with pytest.raises(UserError, match=f"'conv_in.weight' is {str(dtype).removeprefix('torch.')}"):
        loaded(good | {"conv_in.weight": good["conv_in.weight"].to(dtype)})


@pytest.mark.parametrize("x", [torch.ones(3, device="meta"), torch.ones(3).to_sparse()], ids=["meta", "sparse"])
def test_tensors_without_dense_numbers_are_refused_by_key(loaded, good, x):
    with pytest.raises(UserError, match=r"'conv_out\.bias' (has no values|is a torch.sparse_coo tensor)"):
        loaded(good | {"conv_out.bias": x})


def test_strictness_stays(loaded, good):
    for change, message in (
        ({"conv_in.extra": torch.ones(1)}, "surplus 'conv_in.extra'"),
        ({"conv_in.bias": torch.ones(3)}, r"'conv_in.bias' has shape \(3,\)"),
        ({"conv_in.bias": torch.full((32,), torch.nan)}, "'conv_in.bias' holds nan"),
    ):
        for wrapped in (good | change, {"model": renamed(good | change, "module.{}")}):
            with pytest.raises(UserError, match=message):
                loaded(wrapped)
    less = {key: x for key, x in good.items() if key != "conv_in.bias"}
    with pytest.raises(UserError, match=r"lacks 'conv_in\.bias'"):
        loaded(less)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ({"lora_unet_x.lora_down.weight": torch.ones(2, 2)}, "LoRA"),
        ({"weight": {"model.conv_in.wqtizer.delta": torch.ones(1)}, "act_0": {}}, "TFMQ-DM"),
        ({"down_blocks.0.resnets.0.conv1.weight": torch.ones(2, 2)}, "diffusers"),
    ],
)
def test_another_kind_of_file_is_named(loaded, content, name):
    with pytest.raises(UserError, match=name):
        loaded(content)


def test_scales_beside_weights_that_would_fit(loaded, good):
    with pytest.raises(UserError, match="another tool"):
        loaded(good | {"conv_in.weight_quantizer._amax": torch.ones(1)})


def test_what_is_not_this_networks_is_counted(loaded, good, caplog):
    caplog.set_level(logging.INFO)
    loaded({"state_dict": renamed(good, "model.{}") | {"betas": torch.ones(3)}})
    assert "weights from 'state_dict.model' of" in caplog.text
    assert "left out 1 tensors beside" in caplog.text
