"""`python -m qdiff convert`: the same codes, and no file touched when something is wrong."""

import os
import random
import subprocess
import sys

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from qdiff.checkpoints.load import load_quantized
from qdiff.checkpoints.quantized_file import read_quantized
from tests.command_line import qdiff, refusal
from tests.golden_networks import exact_output
from tests.ldm.golden import golden_model
from tests.original_checkpoints import W4A8_SPLIT, W8A8, calibrated_state, original_checkpoint, relative_error

W4 = ("--weight_bit", 4, "--split")
W4A8 = (*W4, "--quant_act", "--act_bit", 8, "--a_sym")


class Case:
    def __init__(self, name, folder):
        self.original, self.folder = original_checkpoint(name), folder
        self.pth, self.config = folder / "quantized_ckpt.pth", folder / "model.yml"
        torch.save(self.original.state, self.pth)
        OmegaConf.save(self.original.config, self.config)

    def damaged(self, change, name="changed.pth"):
        """A checkpoint after `change(state)`; safetensors inside, which is read faster than a pickle."""
        state = dict(self.original.state)
        change(state)
        save_file(state, self.folder / name)
        return self.folder / name


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return Case(W4A8_SPLIT, tmp_path_factory.mktemp("split"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return Case(W8A8, tmp_path_factory.mktemp("plain"))


@pytest.fixture
def out(tmp_path):
    """Where nothing may be written: the folder is checked afterwards."""
    path = tmp_path / "out" / "converted.safetensors"
    yield path
    assert not path.parent.exists()


def test_the_same_network_comes_out(case, tmp_path):
    out = tmp_path / "new folder" / "w4a8.safetensors"
    ended = qdiff("convert", case.pth, "--config", case.config, *W4A8, "-o", out)
    assert (ended.status, ended.err) == (0, "")
    assert "symmetric, 8 bits, 8 after the softmax" in ended.out
    assert "MACs per network call and image" in ended.out
    assert list(out.parent.iterdir()) == [out]

    file = read_quantized(out)
    assert OmegaConf.create(file.config) == case.original.config
    assert file.provenance["converted from"] == case.pth.name
    found = load_quantized(case.original.network(), out, **case.original.flags())
    expected = load_quantized(case.original.network(), case.pth, **case.original.flags())
    for path, layer in expected.layers().items():
        assert torch.equal(found.layers()[path].codes, layer.codes)
    golden = case.original.case
    assert relative_error(exact_output(found, golden), golden.tensors["wa_output"]) < 1e-5


def test_weights_only_says_what_is_left_out(case, tmp_path):
    ended = qdiff("convert", case.pth, "--config", case.config, "--split", "-o", tmp_path / "w")
    assert ended.status == 0
    assert "add --quant_act" in ended.out
    assert read_quantized(tmp_path / "w").policy.act is None


def test_the_command_itself(plain, tmp_path):
    flags = ["--weight_bit", "8", "--quant_act", "--act_bit", "8", "--sm_abit", "16"]
    command = [sys.executable, "-m", "qdiff", "convert", plain.pth, "--config", plain.config, *flags]
    ended = subprocess.run([*command, "-o", tmp_path / "a"], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert qdiff("convert", plain.pth, "--config", plain.config, *flags, "-o", tmp_path / "b").status == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_an_existing_file_is_replaced_only_on_request(case, tmp_path):
    out = tmp_path / "there.safetensors"
    out.write_text("precious")
    command = ("convert", case.pth, "--config", case.config, *W4, "-o", out)
    assert "--force" in refusal(*command)
    assert out.read_text() == "precious"
    broken = case.damaged(lambda state: state.pop("model.conv_out.bias"))
    assert "model.conv_out.bias" in refusal("convert", broken, *command[2:], "--force")
    assert out.read_text() == "precious"
    assert qdiff(*command, "--force").status == 0
    assert read_quantized(out).policy.weight.bits == 4
    assert "folder" in refusal(*command[:-1], tmp_path)


def test_our_own_file_needs_no_conversion(case, tmp_path, out):
    qdiff("convert", case.pth, "--config", case.config, *W4, "-o", tmp_path / "ours")
    assert "already" in refusal("convert", tmp_path / "ours", "--config", case.config, *W4, "-o", out)


@pytest.mark.parametrize(
    ("which", "flags", "remedy"),
    [
        ("case", ("--weight_bit", 4), "--split: add it"),
        ("case", ("--weight_bit", 8, "--split"), "--weight_bit 4"),
        ("case", (*W4, "--quant_act"), "--a_sym: add it"),
        ("plain", ("--split",), "--split: leave it out"),
        ("plain", ("--quant_act", "--a_sym"), "--a_sym: leave it out"),
        ("case", (*W4, "--a_sym"), "--quant_act"),
        ("case", ("--weight_bit", 9, "--split"), "2..8"),
        ("case", (*W4, "--quant_ac"), "--quant_act"),
    ],
)
def test_wrong_flags(request, out, which, flags, remedy):
    case = request.getfixturevalue(which)
    assert remedy in refusal("convert", case.pth, "--config", case.config, *flags, "-o", out)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda state: state.pop("model.mid.block_1.norm1.weight"), "lacks 'model.mid.block_1.norm1.weight'"),
        (lambda state: state.pop("model.mid.attn_1.act_quantizer_q.delta"), "lacks 'model.mid.attn_1.act_quantizer_q"),
        (lambda state: state.update({"model.extra": torch.ones(2)}), "surplus 'model.extra'"),
        (lambda state: state.update({"model.conv_out.bias": torch.ones(2)}), "'model.conv_out.bias' has shape (2,)"),
        (lambda state: state.pop("model.conv_in.weight_quantizer.delta"), "unfinished calibration"),
    ],
)
def test_keys_and_shapes(case, out, change, cause):
    path = case.damaged(change)
    message = refusal("convert", path, "--config", case.config, *W4, "-o", out)
    assert cause in message
    assert str(path) in message


def test_another_architecture(case, tmp_path, out):
    other = OmegaConf.merge(case.original.config, {"model": {"num_res_blocks": 2}})
    OmegaConf.save(other, tmp_path / "other.yml")
    message = refusal("convert", case.pth, "--config", tmp_path / "other.yml", *W4, "-o", out)
    assert "does not fit the network" in message
    assert "--config" in message


def test_full_precision_given_as_calibrated(case, out):
    path = case.folder / "fp.ckpt"
    torch.save(case.original.weights, path)
    assert "use --ckpt" in refusal("convert", path, "--config", case.config, *W4, "-o", out)


def test_truncated_and_flipped(case, tmp_path, out):
    whole, draw = case.pth.read_bytes(), random.Random(2)
    flipped = bytearray(whole)
    flipped[draw.randrange(len(whole) // 10, len(whole) * 9 // 10)] ^= 1 << draw.randrange(8)
    for content in (whole[: len(whole) // 2], flipped):
        (tmp_path / "bad.pth").write_bytes(content)
        message = refusal("convert", tmp_path / "bad.pth", "--config", case.config, *W4, "-o", out)
        assert str(tmp_path / "bad.pth") in message


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_run_code_runs_nothing(case, tmp_path, out):
    torch.save(case.original.state | {"x": Payload(tmp_path / "executed")}, tmp_path / "bad.pth")
    message = refusal("convert", tmp_path / "bad.pth", "--config", case.config, *W4, "-o", out)
    assert "nothing in it was executed" in message
    assert not (tmp_path / "executed").exists()


def test_files_that_are_missing(case, tmp_path, out):
    nowhere = tmp_path / "nowhere"
    assert str(nowhere) in refusal("convert", nowhere, "--config", case.config, *W4, "-o", out)
    assert str(nowhere) in refusal("convert", case.pth, "--config", nowhere, *W4, "-o", out)
    assert "--out" in refusal("convert", case.pth, "--config", case.config, *W4)
    assert "--config" in refusal("convert", case.pth, *W4, "-o", out)


def test_a_latent_model(tmp_path):
    model, golden = golden_model("ldm_class_w4a8")
    network, s = model.model.diffusion_model, golden.settings
    torch.save(calibrated_state(network.state_dict(), golden, {}), tmp_path / "ckpt.pth")
    OmegaConf.save(s.config, tmp_path / "config.yaml")
    flags = ["--weight_bit", s.weight_bit, "--quant_act", "--act_bit", s.act_bit, "--sm_abit", s.sm_abit]
    out = tmp_path / "q.safetensors"
    ended = qdiff("convert", tmp_path / "ckpt.pth", "--config", tmp_path / "config.yaml", *flags, "-o", out)
    assert (ended.status, ended.err) == (0, "")
    quantized = load_quantized(network, out, act_bit=s.act_bit, sm_abit=s.sm_abit)
    assert relative_error(exact_output(quantized, golden), golden.tensors["wa_output"]) < 1e-5
    assert read_quantized(out).config == OmegaConf.to_container(s.config)
