"""Files into networks: golden outputs through both layouts, and every file that does not fit."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ddim.models.diffusion import Model
from qdiff import quant_layer
from qdiff.adapters import adapter_for
from qdiff.adaptive_rounding import AdaRoundQuantizer
from qdiff.checkpoints import content, quantized_file
from qdiff.checkpoints.load import load_quantized, load_rounding, save_quantized
from qdiff.checkpoints.quantized_file import read_quantized
from qdiff.checkpoints.read import read_checkpoint
from qdiff.checkpoints.validate import state_shapes
from qdiff.checkpoints.weights import load_weights
from qdiff.errors import UserError
from qdiff.observers import Observer
from qdiff.packing import packed_size
from qdiff.policy import QuantPolicy, QuantSpec
from qdiff.quant_layer import UniformAffineQuantizer
from qdiff.quant_model import QuantModel
from tests.golden_networks import GOLDEN, exact_output, load_case
from tests.original_checkpoints import W4A8_SPLIT, W8A8, original_checkpoint, output, relative_error

CONFIGS = Path(__file__).parents[3] / "configs"
AS_SAVED = "ddim_as_saved"


class Files:
    """A golden network as files: calibrated by the original, ours, and in full precision."""

    def __init__(self, name, folder):
        self.original = original_checkpoint(name)
        self.pth, self.ours, self.fp = (folder / f"{name}.{end}" for end in ("pth", "safetensors", "ckpt"))
        torch.save(self.original.state, self.pth)
        torch.save(self.original.weights, self.fp)
        model = self.load(self.pth, act=True)
        save_quantized(self.ours, model, config=OmegaConf.to_container(self.original.config), provenance={"a": 1})

    def load(self, path, *, act):
        return load_quantized(self.original.network(), path, **self.original.flags(act=act))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def split_case(folder):
    return Files(W4A8_SPLIT, folder)


@pytest.fixture(scope="module")
def plain_case(folder):
    return Files(W8A8, folder)


@pytest.fixture(params=["split_case", "plain_case"])
def files(request):
    return request.getfixturevalue(request.param)


def refusal(call, *args, **kwargs) -> str:
    with pytest.raises(UserError) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("kind", ["pth", "ours"])
@pytest.mark.parametrize("act", [True, False])
def test_golden_outputs(files, kind, act):
    model = files.load(getattr(files, kind), act=act)
    case = files.original.case
    found = exact_output(model, case) if act else output(model, case.tensors)
    assert relative_error(found, case.tensors["wa_output" if act else "w_output"]) < 1e-5
    assert bool(model.sites()) == act
    assert all(layer.weight is None for layer in model.layers().values())


def test_our_file_has_the_same_state(files):
    before, after = (files.load(path, act=True).quantized_state() for path in (files.pth, files.ours))
    assert before.keys() == after.keys()
    assert all(before[key].dtype == after[key].dtype and torch.equal(before[key], after[key]) for key in before)


def test_saving_what_was_loaded_gives_the_same_bytes(files, tmp_path):
    config = OmegaConf.to_container(files.original.config)
    save_quantized(tmp_path / "again", files.load(files.ours, act=True), config=config, provenance={"a": 1})
    assert (tmp_path / "again").read_bytes() == files.ours.read_bytes()


def test_low_memory_changes_no_number_and_keeps_no_weight(files, tmp_path):
    for path in (files.pth, files.ours):
        expected = files.load(path, act=True)
        packed = load_quantized(files.original.network(), path, **files.original.flags(), low_memory=True)
        tensors = files.original.case.tensors
        assert torch.equal(output(packed, tensors), output(expected, tensors))
        held = sum(x.nbytes for module in packed.layers().values() for x in module.buffers())
        weights = sum(layer.codes.numel() for layer in expected.layers().values())
        assert held < 1.1 * weights * files.original.case.settings.weight_bit / 8
        with pytest.raises(ValueError, match="low memory"):
            save_quantized(tmp_path / "f", packed)
    assert not (tmp_path / "f").exists()


@pytest.fixture
def calls(monkeypatch) -> Counter:
    """Counts what reading and rebuilding cost, by name."""
    counts = Counter()

    def count(owner, name):
        function = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **kw: counts.update([name]) or function(*args, **kw))

    count(quantized_file, "safe_open")
    count(content, "unpack")
    count(quant_layer.QuantModule, "set_codes")
    count(quant_layer.PackedModule, "set_codes")
    count(quant_layer.UniformAffineQuantizer, "dequantize")
    return counts


@pytest.mark.parametrize("low_memory", [False, True])
def test_a_file_is_read_once_and_each_layer_computed_once(split_case, calls, low_memory):
    stored = read_quantized(split_case.ours)
    layers, slices = len(stored.layers), len(stored.layers) + len(stored.splits)  # each split layer has two slices
    calls.clear()
    load_quantized(split_case.original.network(), split_case.ours, **split_case.original.flags(), low_memory=low_memory)
    expected = {"safe_open": 1, "unpack": layers, "set_codes": layers, "dequantize": slices}
    assert calls == {name: n for name, n in expected.items() if not (low_memory and name == "dequantize")}


def test_rounding_is_read_once_and_each_layer_computed_once(split_case, calls):
    weight = QuantSpec(4, per_channel=True, range_search="max")
    model = load_rounding(split_case.original.network(), split_case.ours, QuantPolicy(weight, split=True))
    layers = model.layers().values()
    assert calls["safe_open"] == 1 and calls["unpack"] == calls["set_codes"] == len(layers)
    assert calls["dequantize"] == sum(len(layer.weight_quantizer.quantizers()) for layer in layers)


def test_what_a_file_says_of_itself_needs_no_code(split_case, calls):
    assert read_checkpoint(split_case.ours).summary.layers
    assert calls == {"safe_open": 1}


def test_the_file_is_enough_to_build_the_network(files):
    stored = read_quantized(files.ours)
    assert OmegaConf.create(stored.config) == files.original.config
    model = load_quantized(Model(OmegaConf.create(stored.config)).eval(), files.ours, **files.original.flags())
    case = files.original.case
    assert relative_error(exact_output(model, case), case.tensors["wa_output"]) < 1e-5


def test_the_weights_bits_need_not_be_given(files):
    for path in (files.pth, files.ours):
        flags = files.original.flags() | {"weight_bit": None}
        model = load_quantized(files.original.network(), path, **flags)
        assert model.policy.weight.bits == files.original.case.settings.weight_bit


@pytest.mark.parametrize(
    ("case", "change", "remedy"),
    [
        ("split_case", {"split": False}, "calibrated with --split: add it"),
        ("plain_case", {"split": True}, "calibrated without --split: leave it out"),
        ("split_case", {"weight_bit": 8}, "give --weight_bit 4"),
        ("plain_case", {"weight_bit": 4}, "give --weight_bit 8"),
        ("split_case", {"a_sym": False}, "calibrated with --a_sym: add it"),
        ("plain_case", {"a_sym": True}, "calibrated without --a_sym: leave it out"),
        ("plain_case", {"act_bit": 4}, "give --act_bit 8"),
        ("plain_case", {"sm_abit": 8}, "give --sm_abit 16"),
    ],
)
def test_flags_that_contradict_the_file(request, case, change, remedy):
    files = request.getfixturevalue(case)
    in_the_original = change.keys().isdisjoint({"act_bit", "sm_abit"})  # these it does not tell
    for path in [files.ours, *[files.pth] * in_the_original]:
        message = refusal(load_quantized, files.original.network(), path, **(files.original.flags() | change))
        assert str(path) in message
        assert remedy in message


def test_activations_that_the_file_does_not_have(split_case, tmp_path):
    state = {key: x for key, x in split_case.original.state.items() if ".act_quantizer" not in key}
    torch.save(state, tmp_path / "w.pth")
    weights_only = split_case.load(tmp_path / "w.pth", act=False)
    save_quantized(tmp_path / "w.safetensors", weights_only)
    for path in (tmp_path / "w.pth", tmp_path / "w.safetensors"):
        assert "leave out --quant_act" in refusal(split_case.load, path, act=True)
        tensors = split_case.original.case.tensors
        assert relative_error(output(split_case.load(path, act=False), tensors), tensors["w_output"]) < 1e-5


@pytest.mark.parametrize("kind", ["pth", "ours"])
@pytest.mark.parametrize("change", [{"num_res_blocks": 2}, {"ch": 64}])
def test_another_architecture(split_case, kind, change):
    config = OmegaConf.merge(split_case.original.config, {"model": change})
    path = getattr(split_case, kind)
    message = refusal(load_quantized, Model(config), path, **split_case.original.flags())
    assert "does not fit the network" in message
    assert "--config" in message
    assert str(path) in message


def damaged(case, path, change):
    state = dict(case.original.state)
    change(state)
    save_file(state, path)  # the kind of file is decided by content; this one is read faster
    return refusal(case.load, path, act=False)


@pytest.mark.parametrize(
    "key",
    [
        "model.conv_out.bias",
        "model.mid.attn_1.act_quantizer_w.delta",
        "model.conv_in.act_quantizer.zero_point",
        "model.up.0.block.1.nin_shortcut.act_quantizer_0.delta",
        "model.norm_out.weight",
    ],
)
def test_a_missing_key_is_named(split_case, tmp_path, key):
    assert f"lacks '{key}'" in damaged(split_case, tmp_path / "x.pth", lambda state: state.pop(key))


def test_many_missing_keys_are_counted(split_case, tmp_path):
    def change(state):
        for key in [key for key in state if key.startswith("model.conv_out.")]:
            del state[key]

    assert "lacks 'model.conv_out.act_quantizer.delta' and 6 more" in damaged(split_case, tmp_path / "x.pth", change)


@pytest.mark.parametrize(
    "key",
    ["model.conv_out.extra", "model.conv_in.act_quantizer_0.delta", "step", "model.mid.attn_1.act_quantizer_x.delta"],
)
def test_a_surplus_key_is_named(split_case, tmp_path, key):
    message = damaged(split_case, tmp_path / "x.pth", lambda state: state.update({key: torch.ones(())}))
    assert f"surplus '{key}'" in message


@pytest.mark.parametrize(
    ("key", "x", "named"),
    [
        ("model.conv_out.bias", torch.zeros(4), "has shape (4,), the network needs (3,)"),
        ("model.conv_in.act_quantizer.delta", torch.ones(32), "has shape (32,), the network needs ()"),
        ("model.conv_out.bias", torch.tensor([0.0, torch.nan, 0.0]), "holds nan"),
        ("model.conv_in.act_quantizer.delta", torch.tensor(-0.5), "holds -0.5"),
        ("model.conv_in.act_quantizer.delta", torch.tensor(0.0), "holds 0.0"),
        ("model.conv_in.act_quantizer.zero_point", torch.tensor(0.25), "holds 0.25"),
    ],
)
def test_a_wrong_tensor_is_named(plain_case, tmp_path, key, x, named):
    message = damaged(plain_case, tmp_path / "x.pth", lambda state: state.update({key: x}))
    assert f"'{key}' {named}" in message


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_calibrated_file_in_half_precision(split_case, tmp_path, dtype):
    """Its weights lie on other steps than those that were calibrated."""
    save_file({key: x.to(dtype) for key, x in split_case.original.state.items()}, tmp_path / "half.pth")
    assert "too coarse" in refusal(split_case.load, tmp_path / "half.pth", act=False)


def test_slices_at_other_channels(split_case):
    model = split_case.original.network()
    model.up[0].block[0].skip_channels = 64  # 32 from below instead of 64
    assert "alpha" in refusal(load_quantized, model, split_case.pth, **split_case.original.flags())
    assert "other channels" in refusal(load_quantized, model, split_case.ours, **split_case.original.flags())


def test_full_precision_given_as_calibrated(split_case, tmp_path):
    save_file(split_case.original.weights, tmp_path / "fp.safetensors")
    for path in (split_case.fp, tmp_path / "fp.safetensors"):
        message = refusal(split_case.load, path, act=False)
        assert "full-precision checkpoint without quantizers: use --ckpt" in message
        assert str(path) in message


def test_calibrated_given_as_full_precision(split_case, tmp_path):
    save_file(split_case.original.state, tmp_path / "renamed.safetensors")
    for path in (split_case.pth, split_case.ours, tmp_path / "renamed.safetensors"):
        message = refusal(load_weights, split_case.original.network(), path)
        assert "use --resume --cali_ckpt" in message
        assert str(path) in message


def test_full_precision_weights(split_case, tmp_path):
    model, tensors = split_case.original.network(), split_case.original.case.tensors
    load_weights(model, split_case.fp)
    assert relative_error(output(model, tensors), tensors["fp_output"]) < 1e-5
    weights = dict(split_case.original.weights)
    bias = weights.pop("conv_out.bias")
    torch.save(weights, tmp_path / "less.pth")
    assert "lacks 'conv_out.bias'" in refusal(load_weights, model, tmp_path / "less.pth")
    torch.save(weights | {"conv_out.bias": bias / 0}, tmp_path / "inf.pth")
    assert "'conv_out.bias' holds" in refusal(load_weights, model, tmp_path / "inf.pth")


def test_rounding_alone_keeps_the_network_in_full_precision(files):
    s, tensors = files.original.case.settings, files.original.case.tensors
    weight = QuantSpec(s.weight_bit, per_channel=True, range_search="max")
    policy = QuantPolicy(weight, QuantSpec(8, symmetric=not s.a_sym), split=s.split)
    for path in (files.pth, files.ours):
        network = files.original.network()
        load_weights(network, files.fp)
        model = load_rounding(network, path, policy)
        assert relative_error(output(model, tensors), tensors["w_output"]) < 1e-5
        with model.full_precision():
            assert relative_error(output(model, tensors), tensors["fp_output"]) < 1e-5
        assert model.sites()
        assert all(site.quantizer is None for site in model.sites())
    other = QuantPolicy(weight, QuantSpec(8), split=not s.split)
    assert "--split" in refusal(load_rounding, files.original.network(), files.pth, other)


def calibrated(config, policy):
    """A network whose numbers mean nothing: rounded to nearest, every activation range that of a few numbers."""
    model = Model(config).eval()
    model = QuantModel(model, policy, adapter_for(model))
    for site in model.sites():
        site.observe(Observer)
        for part in site.quantizer.parts if site.split else [site.quantizer]:
            part(torch.linspace(-1, 1, 5))
        site.freeze()
    return model


@pytest.mark.parametrize("act", [None, QuantSpec(8, range_search="minmax")])
@pytest.mark.parametrize("split", [True, False])
def test_the_shapes_that_are_checked_are_those_that_are_saved(split_case, act, split):
    weight = QuantSpec(4, per_channel=True, range_search="minmax")
    policy = QuantPolicy(weight, act, split=split)
    network = split_case.original.network()
    expected = state_shapes(network, policy, adapter_for(network))
    state = calibrated(split_case.original.config, policy).quantized_state()
    assert expected == {key: tuple(x.shape) for key, x in state.items()}


MIXED = QuantPolicy(
    QuantSpec(4, symmetric=True, per_channel=True, range_search="minmax"),
    QuantSpec(8, range_search="minmax"),
    softmax_bits=16,
    split=True,
    weight_rules=(("model.mid.*", 8), ("*.conv_out", 3), ("model.up.*.nin_shortcut", 2)),
    act_rules=(("*.conv_out", None), ("model.mid.*", 6), ("*.smv_matmul.w", 12)),
)


@pytest.fixture
def mixed(split_case, tmp_path):
    model = calibrated(split_case.original.config, MIXED)
    save_quantized(tmp_path / "mixed", model)
    return model, tmp_path / "mixed"


@pytest.mark.parametrize("low_memory", [False, True])
def test_bits_per_layer_are_read_as_they_were_written(split_case, mixed, low_memory):
    model, path = mixed
    tensors, flags = split_case.original.case.tensors, {"act_bit": 8, "sm_abit": 16, "split": True}
    again = load_quantized(split_case.original.network(), path, low_memory=low_memory, **flags)
    assert again.policy == MIXED
    assert torch.equal(output(again, tensors), output(model, tensors))
    assert [(s.path, s.name, s.spec) for s in again.sites()] == [(s.path, s.name, s.spec) for s in model.sites()]
    for layer, expected in zip(again.layers().values(), model.layers().values()):
        assert torch.equal(layer.codes, expected.codes)
    weights = load_quantized(split_case.original.network(), path, split=True, low_memory=low_memory)
    for site in model.sites():
        site.set(None)
    assert torch.equal(output(weights, tensors), output(model, tensors))


def test_a_file_with_bits_per_layer_tells_them(mixed):
    model, path = mixed
    summary, packed = read_checkpoint(path).summary, load_file(path)
    assert {name: layer.bits for name, layer in summary.layers.items()} == {
        name: 8
        if ".mid." in name
        else 3
        if "conv_out" in name
        else 2
        if "nin_shortcut" in name and ".up." in name
        else 4
        for name in model.layers()
    }
    for name, layer in model.layers().items():
        assert packed[f"{name}.codes"].numel() == packed_size(layer.codes.numel(), summary.layers[name].bits)
    assert (summary.weight_bits, summary.activations.bits, summary.activations.softmax_bits) == (4, 8, 16)
    assert summary.policy == MIXED


def version(path: Path) -> int:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["qdiff"])["version"]


def test_only_a_file_with_rules_has_a_version_that_older_readers_refuse(split_case, mixed):
    assert (version(split_case.ours), version(mixed[1])) == (1, 2)


def test_rounding_takes_the_bits_of_the_file(split_case, mixed):
    model, path = mixed
    policy = replace(MIXED, weight_rules=(), act_rules=(("*.conv_in", None),))
    again = load_rounding(split_case.original.network(), path, policy)
    assert again.policy == replace(policy, weight_rules=MIXED.weight_rules)
    for layer, expected in zip(again.layers().values(), model.layers().values()):
        assert torch.equal(layer.quantized_weight(), expected.quantized_weight())
    for other in (mixed[1], split_case.pth):
        policy = QuantPolicy(MIXED.weight, split=True, weight_rules=(("*", 5),))
        assert "leave out its weight_rules" in refusal(load_rounding, split_case.original.network(), other, policy)


@pytest.mark.parametrize(("bits", "most"), [(2, 0.08), (4, 0.14), (8, 0.27)])
def test_the_file_is_small(tmp_path, bits, most):
    config = OmegaConf.load(CONFIGS / "emoji32.yml")
    policy = QuantPolicy(
        QuantSpec(bits, per_channel=True, range_search="minmax"), QuantSpec(8, range_search="minmax"), split=True
    )
    model = calibrated(config, policy)
    save_quantized(tmp_path / "q", model, config=OmegaConf.to_container(config), provenance={"settings": "x" * 2000})
    save_file(Model(config).state_dict(), tmp_path / "fp")
    assert (tmp_path / "q").stat().st_size <= most * (tmp_path / "fp").stat().st_size


def test_an_unfinished_calibration_is_not_saved(split_case, tmp_path):
    s = split_case.original
    model = split_case.load(split_case.pth, act=True)
    site = model.sites()[5]
    quantizer = site.quantizer
    for unfinished in (None, Observer(site.spec)):
        site.set(unfinished)
        with pytest.raises(ValueError, match="not calibrated"):
            save_quantized(tmp_path / "q", model)
    site.set(quantizer)
    layer = model.layers()["model.conv_in"]
    weight = s.weights["conv_in.weight"]
    layer.rounding = AdaRoundQuantizer(UniformAffineQuantizer.fit(weight, model.policy.weight), weight)
    with pytest.raises(ValueError, match="conv_in is still being learned"):
        save_quantized(tmp_path / "q", model)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_the_original_wrote(tmp_path):
    case, checkpoint = load_case(AS_SAVED), GOLDEN / AS_SAVED / "quantized_ckpt.pth"
    wanted, config = case.tensors, case.settings.config
    state = torch.load(checkpoint, weights_only=True)
    weights = {key.removeprefix("model."): x for key, x in state.items() if "_quantizer" not in key}

    def load(path, **acts):
        return load_quantized(Model(config).eval(), path, weight_bit=4, split=True, **acts)

    network = Model(config).eval()
    network.load_state_dict(weights)
    assert relative_error(output(network, wanted), wanted["fp_output"]) < 1e-5
    policy = QuantPolicy(QuantSpec(4, per_channel=True, range_search="max"), split=True)
    nearest = QuantModel(network, policy, adapter_for(network))
    assert relative_error(output(nearest, wanted), wanted["nearest_w_output"]) < 1e-5

    provenance = {"config": OmegaConf.to_container(config), "provenance": {}}
    save_quantized(tmp_path / "q", load(checkpoint, act_bit=8, a_sym=True), **provenance)
    for path in (checkpoint, tmp_path / "q"):
        assert relative_error(output(load(path), wanted), wanted["w_output"]) < 1e-5
        assert relative_error(exact_output(load(path, act_bit=8, a_sym=True), case), wanted["wa_output"]) < 1e-5
