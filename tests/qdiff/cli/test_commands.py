"""The DDIM command lines of the published documentation, word for word, as plans on the CIFAR-10 network."""

import json
import math
import re
import shlex
import socket
from pathlib import Path

import pytest
import torch

from tests.golden_networks import GOLDEN
from tests.tiny import SCRIPT, sample_script

SAMPLE_WEIGHTS = (
    "python scripts/sample_diffusion_ddim.py --config configs/cifar10.yml --use_pretrained --timesteps 100 --eta 0 "
    "--skip_type quad --ptq --weight_bit <4 or 8> --quant_mode qdiff --split --resume -l <output_path> "
    "--cali_ckpt <quantized_ckpt_path>"
)
SAMPLE_BOTH = (
    "python scripts/sample_diffusion_ddim.py --config configs/cifar10.yml --use_pretrained --timesteps 100 --eta 0 "
    "--skip_type quad --ptq --weight_bit <4 or 8> --quant_mode qdiff --quant_act --act_bit 8 --a_sym --split --resume "
    "-l <output_path> --cali_ckpt <quantized_ckpt_path>"
)
CALIBRATE = (
    "python scripts/sample_diffusion_ddim.py --config configs/cifar10.yml --use_pretrained --timesteps 100 --eta 0 "
    "--skip_type quad --ptq --weight_bit <4 or 8> --quant_mode qdiff --cali_st 20 --cali_batch_size 32 --cali_n 256 "
    "--quant_act --act_bit 8 --a_sym --split --cali_data_path <cali_data_path> -l <output_path>"
)


MANIFEST = GOLDEN / "cifar10_ddim_quantized_split_wa.json"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    """A folder with the configurations, no weights, no network and an empty home."""

    def refuse(*args):
        raise AssertionError("a dry run needs no network")

    (tmp_path / "configs").symlink_to(SCRIPT.parents[1] / "configs")
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return tmp_path


def calibrated_checkpoint(bits: int) -> dict[str, torch.Tensor]:
    """Keys and shapes of the published CIFAR-10 checkpoints, with numbers that fit the bits and symmetric ranges."""

    def tensor(key: str, shape: list[int]) -> torch.Tensor:
        field = key.rpartition(".")[2]
        if field == "weight" and len(shape) > 1:  # every channel's range is 2^bits - 1 steps of 1 wide
            return torch.linspace(0, 2**bits - 1, math.prod(shape[1:])).view(shape[1:]).expand(shape)
        return torch.tensor(float(field == "delta")).expand(shape)

    return {key: tensor(key, shape) for key, shape in json.loads(MANIFEST.read_text()).items()}


def plan_of(command: str, bits: int) -> str:
    """What a command prints as its plan; nothing is written."""
    for blank, value in {
        "<4 or 8>": bits,
        "<output_path>": "out",
        "<quantized_ckpt_path>": "quantized.pth",
        "<cali_data_path>": "data.pt",
    }.items():
        command = command.replace(blank, str(value))
    _, script, *words = shlex.split(command)
    assert SCRIPT.as_posix().endswith(script)
    before = sorted(path for path in Path().rglob("*"))
    ended = sample_script(*words, "--dry-run")
    assert (ended.status, ended.err) == (0, "")
    assert sorted(path for path in Path().rglob("*")) == before
    return ended.out


def common(plan: str) -> None:
    assert "network: configs/cifar10.yml, 35,746,307 parameters on " in plan
    assert re.search(r"sampling: 50000 images, 100 steps, about \d+:\d\d:\d\d, to out", plan)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("command", [SAMPLE_WEIGHTS, SAMPLE_BOTH], ids=["weights", "both"])
def test_sampling_with_a_calibrated_checkpoint(command, bits, elsewhere):
    torch.save(calibrated_checkpoint(bits), "quantized.pth")
    plan = plan_of(command, bits)
    common(plan)
    assert "calibrated weights: quantized.pth" in plan
    assert "calibration data" not in plan


def test_a_checkpoint_that_is_missing(elsewhere):
    ended = sample_script(*shlex.split(SAMPLE_WEIGHTS.replace("<4 or 8>", "4"))[2:], "--dry-run")
    assert ended.status == 2
    assert (
        ended.err.startswith("error: cannot read '<quantized_ckpt_path>' (No such file") and ended.err.count("\n") == 1
    )


def test_calibrating(elsewhere):
    plan = plan_of(CALIBRATE, 4)
    common(plan)
    assert "calibration data: data.pt" in plan
    rows = re.findall(r"^(model\.\S+) +([\d,]+) +([\d.]+) MiB +\d+:\d\d:\d\d$", plan, re.MULTILINE)
    sizes = {path: (int(weights.replace(",", "")), float(captured)) for path, weights, captured in rows}
    assert len(sizes) == 38 and f"{len(sizes)} blocks, {20 * 256} calibration samples" in plan
    assert sizes["model.conv_in"] == (3 * 128 * 9, pytest.approx(5120 * 4 * (3 + 128) * 32 * 32 / 2**20, abs=0.1))
    assert sizes["model.mid.attn_1"] == (4 * 256**2, pytest.approx(5120 * 4 * 2 * 256 * 4 * 4 / 2**20, abs=0.1))
    inputs = 5120 * 4 * ((512 + 256) * 4 * 4 + 512) / 2**20  # x and the time embedding
    assert sizes["model.up.3.block.0"] == (256 * (512 * 9 + 256 * 9 + 512 + 512), pytest.approx(inputs, abs=0.1))
    layers = sum(weights for weights, _ in sizes.values())
    others = 35_746_307 - layers
    assert 0 < others < 0.01 * layers, "biases and normalisation"
    assert re.search(r"memory for captured activations: \d+\.\d\d GiB, on disk up to \d+\.\d\d GiB", plan)
    assert re.search(r"^estimated time: \d+:\d\d:\d\d$", plan, re.MULTILINE)
