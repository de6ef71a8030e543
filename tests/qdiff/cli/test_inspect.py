"""What `python -m qdiff inspect` says about each kind of file, and about broken ones."""

import os
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from qdiff.adapters import adapter_for
from qdiff.calls import Call
from qdiff.checkpoints.load import load_as_written, load_quantized, save_quantized
from qdiff.checkpoints.quantized_file import read_quantized, write_quantized
from qdiff.cli.operations import layer_table
from qdiff.evaluation.bops import LeafBops, NetworkBops, network_bops
from qdiff.execution import execute_integers, executed_leaves, has_vnni
from qdiff.files.tables import with_prefix
from qdiff.mixed_precision.choice import KEY, Choice
from qdiff.mixed_precision.criteria import SignalToNoise
from qdiff.mixed_precision.measurement import Measurement
from qdiff.observers import Observer
from qdiff.policy import QuantPolicy, QuantSpec
from qdiff.quant_model import QuantModel
from tests.command_line import qdiff, refusal
from tests.ldm.golden import golden_model
from tests.original_checkpoints import SPLITS, W4A8_SPLIT, original_checkpoint

CONFIGS = Path(__file__).parents[3] / "configs"


@pytest.fixture(scope="module")
def original():
    return original_checkpoint(W4A8_SPLIT)


@pytest.fixture(scope="module")
def pth(original, tmp_path_factory):
    path = tmp_path_factory.mktemp("inspect") / "quantized_ckpt.pth"
    torch.save(original.state, path)
    return path


@pytest.fixture(scope="module")
def ours(original, pth):
    model = load_quantized(original.network(), pth, **original.flags())
    config = OmegaConf.to_container(original.config)
    save_quantized(pth.with_name("ours.safetensors"), model, config=config, provenance={"cali_iters": 20000})
    return pth.with_name("ours.safetensors")


def inspected(path, *flags):
    """The head as a dict, the table as a list of rows."""
    ended = qdiff("inspect", path, *flags)
    assert (ended.status, ended.err) == (0, "")
    head, _, table = ended.out.partition("\n\n")
    return {line[:12].strip(): line[13:] for line in head.splitlines()}, [line.split() for line in table.splitlines()]


def check_table(table, original, act_bits, products=0):
    """Also that this many rows are of attention products."""
    assert table[0][:6] == ["layer", "weight", "bits", "split", "act", "bits"]
    rows = {row[0]: row[1:5] for row in table[1:] if row[1] != "-"}
    assert len(table) == 1 + len(rows) + products
    layers = [
        key.removesuffix(".weight") for key, x in original.weights.items() if key.endswith("weight") and x.ndim > 1
    ]
    assert list(rows) == [f"model.{layer}" for layer in layers]
    for path, (shape, bits, split, act) in rows.items():
        assert shape == "x".join(map(str, original.weights[path.removeprefix("model.") + ".weight"].shape))
        assert (bits, act) == ("4", act_bits)
        assert split == ("+".join(map(str, SPLITS[path])) if path in SPLITS else "-")


def test_a_checkpoint_of_the_original(original, pth):
    head, table = inspected(pth)
    assert "calibrated checkpoint of the original" in head["file"]
    assert head["weights"] == "4 bits in 51 layers"
    assert head["activations"].startswith("symmetric")
    assert head["split"] == "yes, 4 layers"
    size, fp32 = pth.stat().st_size, 4 * sum(x.numel() for x in original.weights.values())
    assert head["size"].startswith(f"{size / 1e6:.2f} MB, {size / fp32:.3f} of")
    assert head["whole"].startswith("yes")
    assert "checksums agree" in head["whole"]
    check_table(table, original, "?")


def test_a_file_of_ours(original, ours):
    head, table = inspected(ours)
    assert "ddim" in head["file"]
    assert head["weights"] == "4 bits in 51 layers"
    assert head["activations"] == "symmetric, 8 bits, 8 after the softmax"
    assert head["whole"].startswith("yes")
    assert head["cali_iters"] == "20000"
    check_table(table, original, "8", products=8)


def test_without_activations(original, pth):
    model = load_quantized(original.network(), pth, **original.flags(act=False))
    path = pth.with_name("weights_only.safetensors")
    save_quantized(path, model, config={}, provenance={})
    head, table = inspected(path)
    assert head["activations"] == "in floating point"
    check_table(table, original, "-")


def test_operations(original, ours):
    """By hand: the first layer of 27 x 32 weights, the last one of 288 x 3, and attention to all 8 x 8 positions."""
    head, table = inspected(ours)
    cost = network_bops(load_as_written(original.network(), ours), Call((torch.zeros(1, 3, 16, 16), torch.zeros(1))))
    counts = with_prefix(cost.macs), with_prefix(cost.bops()), with_prefix(1024 * cost.macs)
    line = "{} MACs per network call and image; {} BOPs, {} of full precision ({})"
    assert head["operations"] == line.format(*counts[:2], f"{cost.bops() / cost.fp_bops:.3f}", counts[2])
    assert table[0][6:] == ["MACs", "BOPs"]
    rows = {row[0]: row[1:] for row in table}
    assert rows["model.conv_in"][4:] == ["221.2", "k", "7.078", "M"]  # 16 x 16 x 27 x 32 MACs, 4 x 8 bits
    assert rows["model.conv_out"][4:] == ["221.2", "k", "7.078", "M"]
    name, products = "model.mid.attn_1.qk_matmul", [row for row in table if row[1] == "-"]
    assert rows[name] == ["-", "-", "-", "8x8", "262.1", "k", "16.78", "M"]  # 64 x 64 x 64, 8 x 8 bits
    assert all(row[0].endswith(("qk_matmul", "smv_matmul")) for row in products)
    names = [row[0] for row in table]
    assert names[names.index(name) - 1] == "model.mid.attn_1.v", "where they are called"


def test_what_backends_compute_in_integers(original, pth):
    acts = {**original.flags(), "sm_abit": 16}
    path = pth.with_name("sm16.safetensors")
    model, config = load_quantized(original.network(), pth, **acts), OmegaConf.to_container(original.config)
    save_quantized(path, model, config=config)
    head, table = inspected(path)
    products = [row[0] for row in table if row[0].endswith("smv_matmul")]
    count = len(model.leaves())
    named = f"{', '.join(products[:3])} and {len(products) - 3} others"
    assert head["integers"] == (
        f"{count - len(products)} of {count} layers and attention products have operands that fit int8; "
        f"8x16 do not: {named}"
    )
    executed = execute_integers(model)
    assert products == [x.path for x in executed_leaves(executed) if x.arithmetic == "float32"] or not has_vnni()


def test_operations_need_the_configuration(original, ours, tmp_path):
    file = read_quantized(ours)
    write_quantized(tmp_path / "bare", replace(file, config={}))
    head, table = inspected(tmp_path / "bare")
    line = "not counted: the file does not hold the configuration of its network: give it with --config"
    assert head["operations"] == line and len(table[0]) == 6
    OmegaConf.save(original.config, tmp_path / "given.yml")
    counted = inspected(tmp_path / "bare", "--config", tmp_path / "given.yml")
    assert (counted[0]["operations"], counted[1]) == (inspected(ours)[0]["operations"], inspected(ours)[1])


@pytest.mark.parametrize("config", [{"model": {"type": "other"}}, {"data": 3}, {"model": {"target": "os.remove"}}])
def test_a_file_with_a_useless_configuration_is_shown_without_operations(config, ours, tmp_path):
    write_quantized(tmp_path / "odd", replace(read_quantized(ours), config=config))
    head, table = inspected(tmp_path / "odd")
    assert head["operations"].startswith(f"not counted: '{tmp_path / 'odd'}'") and len(table[0]) == 6


def test_configurations_that_are_refused(original, ours, pth, tmp_path):
    def said(path, config):
        return refusal("inspect", path, "--config", config)

    OmegaConf.save(original.config, tmp_path / "its.yml")
    assert "does not hold the bits of activations: convert it first" in said(pth, tmp_path / "its.yml")
    torch.save(original.weights, tmp_path / "fp")
    assert "is not quantized, so that there are no bits to count" in said(tmp_path / "fp", tmp_path / "its.yml")
    assert "cannot read" in said(ours, tmp_path / "none.yml")
    assert "does not fit the network: it" in said(ours, CONFIGS / "cifar10.yml")
    assert "does not fit the network: it" in said(ours, CONFIGS / "latent-diffusion" / "emoji64.yaml")
    (tmp_path / "x.yml").write_text("model: {type: simple}")
    assert f"'{tmp_path / 'x.yml'}' has no section 'data'" in said(ours, tmp_path / "x.yml")


def test_what_is_outside_of_all_layers_has_a_row(ours):
    """1000 MACs at 32 x 32 bits, besides 500 of a layer."""
    cost = NetworkBops({"model.conv_in": LeafBops(500, ((4, 8),))}, 1500)
    _, layer, others = (line.split() for line in layer_table(read_quantized(ours).summary, cost).splitlines())
    assert layer == ["model.conv_in", "32x3x3x3", "4", "-", "8", "500", "16", "k"]
    assert others == ["others", "-", "-", "-", "32x32", "1", "k", "1.024", "M"]


def test_operations_of_a_latent_model(tmp_path):
    """With classes, from the file alone: its second product attends to one token."""
    model, case = golden_model("ldm_class_w4a8")
    network = model.model.diffusion_model
    quantized = QuantModel(network, QuantPolicy(), adapter_for(network))
    save_quantized(tmp_path / "q", quantized, config=OmegaConf.to_container(case.settings.config))
    head, table = inspected(tmp_path / "q")
    cost = network_bops(quantized, Call((case.tensors["x"], case.tensors["t"], case.tensors["context"])))
    assert head["operations"].startswith(f"{with_prefix(cost.macs)} MACs")
    rows = {row[0]: row for row in table}
    queries, one_token = (rows[f"model.middle_block.1.transformer_blocks.0.attn{i}.qk_matmul"] for i in (1, 2))
    assert queries[4] == one_token[4] == "32x32"
    assert float(queries[5]) > float(one_token[5])


def test_operations_by_layer_and_phase(original, tmp_path):
    policy = QuantPolicy(
        QuantSpec(4, per_channel=True, range_search="minmax"),
        QuantSpec(8, range_search="minmax"),
        softmax_bits=6,
        weight_rules=(("model.conv_in", 8),),
        act_rules=(("*.conv_out", None),),
        act_phases=((100, 8), (600, 4)),
    )
    network = original.network()
    model = QuantModel(network, policy, adapter_for(network))
    with model.observing(Observer):
        for t in (50, 500, 700):
            model(torch.ones(1, 3, 16, 16), torch.tensor([t]))
    save_quantized(tmp_path / "phased", model, config=OmegaConf.to_container(original.config))
    head, table = inspected(tmp_path / "phased")
    rows = {row[0]: (row[4], " ".join(row[7:])) for row in table[1:]}
    assert rows["model.conv_in"] == ("8/8/4", "14.16 M/14.16 M/7.078 M")
    assert rows["model.conv_out"] == ("-", "28.31 M"), "4 x 32 bits"
    assert rows["model.mid.attn_1.qk_matmul"] == ("8x8/8x8/4x4", "16.78 M/16.78 M/4.194 M")
    assert rows["model.mid.attn_1.smv_matmul"] == ("8x6/8x6/4x6", "12.58 M/12.58 M/6.291 M")
    pattern = r"; (\S+ \w)/(\S+ \w)/(\S+ \w) BOPs, (0\.\d+)/(0\.\d+)/(0\.\d+) of"
    *bops, first, second, third = re.search(pattern, head["operations"]).groups()
    assert bops[0] == bops[1] != bops[2] and float(first) == float(second) > float(third)


def test_bits_per_layer(ours, tmp_path):
    file = read_quantized(ours)
    policy = replace(file.policy, act_rules=(("*.conv_out", None), ("model.mid.*", 6)))
    layers = {p: x._replace(bits=8 if p.startswith("model.mid.") else 4) for p, x in file.layers.items()}
    write_quantized(tmp_path / "mixed", replace(file, policy=policy, layers=layers))
    head, table = inspected(tmp_path / "mixed")
    mid = [path for path in layers if path.startswith("model.mid.")]
    assert head["weights"] == f"4 bits in {51 - len(mid)} layers, 8 bits in {len(mid)} layers"
    rules = "*.conv_out in floating point, model.mid.* 6"
    assert head["activations"] == f"symmetric, 8 bits, 8 after the softmax, {rules}"
    rows = {row[0]: (row[2], row[4]) for row in table[1:]}
    assert (rows["model.conv_out"], rows[mid[0]], rows["model.conv_in"]) == (("4", "-"), ("8", "6"), ("4", "8"))


def test_bits_per_phase(ours, tmp_path):
    file = read_quantized(ours)
    policy = replace(file.policy, act_rules=(("model.conv_in", 6),), act_phases=((100, 8), (600, 4)))
    write_quantized(tmp_path / "phased", replace(file, policy=policy))
    head, table = inspected(tmp_path / "phased")
    phases = "8 at timesteps 100..599, 4 at timesteps from 600 on"
    assert head["activations"] == f"symmetric, 8 bits, 8 after the softmax, {phases}, model.conv_in 6"
    rows = {row[0]: row[4] for row in table[1:]}
    assert (rows["model.conv_in"], rows["model.conv_out"]) == ("6", "8/8/4")


def with_record(ours, path, record):
    file = read_quantized(ours)
    write_quantized(path, replace(file, provenance={**file.provenance, KEY: record}))
    return path


def test_chosen_bits_have_a_table_of_steps(ours, tmp_path):
    """Of three steps, the noisiest of which is two calls."""
    errors = {4: ((9.0, 1.0, 1.0), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0)), 8: ((0.1, 0.0, 0.0),) * 3}
    measured = Measurement((0, 300, 700), (1, 1, 2), (99.0, 1.0, 0.1), (4.0,) * 3, errors, {4: 10**9, 8: 2 * 10**9}, 1)
    choice = Choice.by(SignalToNoise(), measured, None)
    ended = qdiff("inspect", with_record(ours, tmp_path / "q", choice.to_dict()))
    head, steps, layers = ended.out.split("\n\n")
    assert steps.splitlines() == [
        "bits chosen by PTQD's criterion, SNR^Q a ratio of norms",
        "timesteps  act bits  calls  BOPs per image",
        "700..300   4         3      3 G",
        "0..0       8         1      2 G",
        "all                  4      5 G, 0.625 of 8 bits at all steps",
    ]
    assert KEY not in head and "cali_iters" in head and layers == inspected_text(ours)[1]


def inspected_text(path):
    return qdiff("inspect", path).out.split("\n\n")


def test_a_damaged_record_of_chosen_bits(ours, tmp_path):
    assert "has a damaged record of bits by step" in refusal(
        "inspect", with_record(ours, tmp_path / "q", {"bits": [4]})
    )


@pytest.mark.parametrize("save", [torch.save, save_file])
def test_a_full_precision_checkpoint(original, tmp_path, save):
    save(original.weights, tmp_path / "fp")
    head, table = inspected(tmp_path / "fp")
    assert "full-precision checkpoint, not quantized" in head["file"]
    assert f"{sum(x.numel() for x in original.weights.values()):,} parameters" in head["weights"]
    assert not table


def test_every_set_of_weights_has_a_line(original, tmp_path):
    torch.save({"model": original.weights, "ema": original.weights, "step": 3}, tmp_path / "both.pth")
    ended = qdiff("inspect", tmp_path / "both.pth")
    first, second = ended.out.splitlines()[1:3]
    assert first.startswith("weights      'model': ") and second.strip().startswith("'ema': ")
    assert second.endswith(", averages") and not first.endswith(", averages")


@pytest.mark.parametrize(
    ("key", "name"),
    [("lora_unet_x.lora_up.weight", "a LoRA"), ("model.conv_in.wqtizer.delta", "another tool (TFMQ-DM")],
)
def test_what_is_not_read_is_named(tmp_path, key, name):
    save_file({key: torch.ones(2, 2)}, tmp_path / "x")
    head, _ = inspected(tmp_path / "x")
    assert name in head["file"] and "full-precision checkpoint, not quantized" not in head["file"]
    assert "FP32" not in head["size"]


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("old_format", [False, True])
def test_a_pickle_that_would_run_code_runs_nothing(original, tmp_path, old_format):
    state = original.state | {"model.conv_in.extra": Payload(tmp_path / "executed")}
    torch.save(state, tmp_path / "bad.pth", _use_new_zipfile_serialization=not old_format)
    message = refusal("inspect", tmp_path / "bad.pth")
    assert str(tmp_path / "bad.pth") in message
    assert "nothing in it was executed" in message
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("kind", ["pth", "ours"])
def test_a_truncated_file(request, tmp_path, kind):
    whole = request.getfixturevalue(kind).read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut").write_bytes(whole[:length])
        assert str(tmp_path / "cut") in refusal("inspect", tmp_path / "cut")


@pytest.mark.parametrize("kind", ["pth", "ours"])
def test_a_flipped_bit(request, tmp_path, kind):
    whole, draw = request.getfixturevalue(kind).read_bytes(), random.Random(1)
    for _ in range(4):
        broken = bytearray(whole)
        broken[draw.randrange(len(whole) // 10, len(whole) * 9 // 10)] ^= 1 << draw.randrange(8)
        (tmp_path / "flipped").write_bytes(broken)
        assert str(tmp_path / "flipped") in refusal("inspect", tmp_path / "flipped")


def test_a_layer_without_its_step_size(original, tmp_path):
    state = dict(original.state)
    del state["model.conv_out.weight_quantizer.delta"]
    save_file(state, tmp_path / "less")
    assert "'model.conv_out.weight_quantizer.delta' is missing" in refusal("inspect", tmp_path / "less")


def test_calibration_data_are_no_checkpoint(tmp_path):
    torch.save({"xs": [torch.ones(2)], "ts": [torch.ones(2)]}, tmp_path / "data.pt")
    assert "'xs'" in refusal("inspect", tmp_path / "data.pt")


def test_no_file(tmp_path):
    assert "cannot read" in refusal("inspect", tmp_path / "missing.pth")
    assert "is a folder" in refusal("inspect", tmp_path)
    assert "FILE" in refusal("inspect")


def test_a_reader_that_stops_early_sees_no_traceback(ours):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "qdiff", "inspect", ours]
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, "")
