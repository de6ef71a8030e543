"""Training from the command line, in one process and in two."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from qdiff.errors import UserError
from qdiff.training.ddim import train
from qdiff.training.job import TrainingJob
from tests.command_line import SCRIPTS, script
from tests.tiny import tiny_config, tiny_network

NAME = "train_ddim.py"
TRAINING = {
    "categories": ["reds"],
    "batch_size": 4,
    "n_iters": 4,
    "snapshot_freq": 2,
    "warmup": 1,
    "weight_limit": 2,
    "scale_base": 1,
}


@pytest.fixture
def folder(tmp_path) -> Path:
    config = tiny_config()
    config.data.random_flip = True
    config.model.ema_rate = 0.5
    config.training = TRAINING
    config.optim = {"lr": 1e-3, "weight_decay": 0.0, "beta1": 0.9, "eps": 1e-8, "grad_clip": 1.0}
    OmegaConf.save(config, tmp_path / "c.yml")
    images = np.full((8, 8, 8, 3), [255, 0, 0], dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=images, names=np.full(8, "red"), category=np.full(8, "reds"))
    return tmp_path


def start(folder: Path, devices: int) -> dict[str, torch.Tensor]:
    words = f"--config c.yml --data data.npz --out out.safetensors --run run --devices {devices}".split()
    if devices == 1:
        assert script(NAME, *words).status == 0
    else:  # these are told by the environment what they are
        ended = subprocess.run([sys.executable, SCRIPTS / NAME, *words], cwd=folder, capture_output=True, check=False)
        assert ended.returncode == 0, ended.stderr.decode()
    return load_file(folder / "out.safetensors")


@pytest.mark.parametrize("devices", [1, 2])
def test_trained_weights_load_into_the_network(folder, devices, monkeypatch):
    monkeypatch.chdir(folder)
    weights = start(folder, devices)
    network = tiny_network()
    before = {key: x.clone() for key, x in network.state_dict().items()}
    network.load_state_dict(weights)
    assert {x.dtype for x in weights.values()} == {torch.float16}
    assert before.keys() == weights.keys()
    assert any((x - before[key]).abs().max() > 1e-3 for key, x in weights.items())
    last = torch.load(folder / "run" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 4


def test_input_that_is_wrong(folder):
    OmegaConf.save(tiny_config(), folder / "bare.yml")

    def attempt(config: str, data: str = "data.npz") -> None:
        train(TrainingJob(folder / config, folder / data, folder / "run", folder / "out.safetensors"))

    with pytest.raises(UserError, match=r"missing\.npz"):
        attempt("c.yml", "missing.npz")
    with pytest.raises(UserError, match=r"bare\.yml' has no section 'training'"):
        attempt("bare.yml")
    for key, value in {"rescaled": False, "uniform_dequantization": True, "gaussian_dequantization": True}.items():
        config = OmegaConf.load(folder / "c.yml")
        config.data[key] = value
        OmegaConf.save(config, folder / "other.yml")
        with pytest.raises(UserError, match=f"data.{key} is {value}, training needs {not value}"):
            attempt("other.yml")
    for key in ("data.random_flip", "model.ema_rate"):
        config = OmegaConf.load(folder / "c.yml")
        section, _, name = key.partition(".")
        del config[section][name]
        OmegaConf.save(config, folder / "other.yml")
        with pytest.raises(UserError, match=rf"other\.yml' lacks {key}: add it"):
            attempt("other.yml")
    assert not (folder / "out.safetensors").exists() and not (folder / "run").exists()
