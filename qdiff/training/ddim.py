"""Training of a pixel-space model from its configuration."""

from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_only

from qdiff.adapters.ddim_sampling import schedule
from qdiff.checkpoint import load_weights
from qdiff.cli.config import build_network, load_config
from qdiff.training.denoiser import Denoiser
from qdiff.training.pictures import Pictures, Unlabelled
from qdiff.training.sections import PixelTraining, sections
from qdiff.training.trainer import fit, save_half


def train(
    config_path: Path, data_path: Path, run_dir: Path, out: Path, *, init: Path | None, seed: int, devices: int
) -> None:
    """Train and write the EMA weights in half precision to `out`; `init` are weights to start from.

    Raises:
        UserError: the configuration is none or has no settings of a training, or the pictures cannot be read.
    """
    config = load_config(config_path)
    training, optim = sections(config, PixelTraining, config_path, "configs/emoji32.yml")
    data = Pictures(data_path, config.data.image_size, list(training.categories), config.data.random_flip)
    pl.seed_everything(seed + rank_zero_only.rank)  # every process draws its own noise; weights come from the first
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
    weights = fit(
        denoiser,
        Unlabelled(data),
        run_dir,
        steps=training.n_iters,
        batch_size=training.batch_size,
        ema_decay=config.model.ema_rate,
        save_every=training.snapshot_freq,
        grad_clip=optim.grad_clip,
        devices=devices,
    )
    save_half(out, {key.removeprefix("model."): x for key, x in weights.items()})
