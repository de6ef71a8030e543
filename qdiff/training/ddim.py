"""Training of a pixel-space model from its configuration."""

from pathlib import Path

import torch

from qdiff.adapters.ddim.samplers import schedule
from qdiff.checkpoints.weights import load_weights
from qdiff.config.pixel import build_network, load_config
from qdiff.errors import UserError
from qdiff.training.denoiser import Denoiser
from qdiff.training.pictures import Pictures, Unlabelled
from qdiff.training.sections import PixelTraining, sections
from qdiff.training.trainer import fit_as_configured, save_half, seed_process

PICTURES = {  # what `Pictures` gives: colours in -1..1 without noise
    "channels": 3,
    "rescaled": True,
    "logit_transform": False,
    "uniform_dequantization": False,
    "gaussian_dequantization": False,
}


def train(
    config_path: Path, data_path: Path, run_dir: Path, out: Path, *, init: Path | None, seed: int, devices: int
) -> None:
    """Train and write the EMA weights in half precision to `out`; `init` are weights to start from.

    Raises:
        UserError: the configuration is none or has no settings of a training, or the pictures cannot be read.
    """
    config = load_config(config_path)
    for key, value in PICTURES.items():
        if config.data[key] != value:
            raise UserError(
                f"{config_path}: data.{key} is {config.data[key]}, a training here needs {value}: correct it"
            )
    training, optim = sections(config, PixelTraining, config_path, "configs/emoji32.yml")
    data = Pictures(data_path, config.data.image_size, list(training.categories), config.data.random_flip)
    seed_process(seed)
    network = build_network(config, config_path)
    if init:
        load_weights(network, init)
    network.to(memory_format=torch.channels_last)
    denoiser = Denoiser(
        network,
        schedule(config.diffusion),
        optim,
        warmup=training.warmup,
        steps=training.n_iters,
        weight_limit=training.weight_limit,
        scale_base=training.scale_base,
    )
    weights = fit_as_configured(
        denoiser, Unlabelled(data), run_dir, training, optim, ema_decay=config.model.ema_rate, devices=devices
    )
    save_half(out, {key.removeprefix("model."): x for key, x in weights.items()})
