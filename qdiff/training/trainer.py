"""One way to train for every bundled model: EMA weights, checkpoints, and the same command resumes."""

from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities import rank_zero_only
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from qdiff.files.atomic import replacing


def fit(
    module: pl.LightningModule,
    data: Dataset,
    run_dir: Path,
    *,
    steps: int,
    batch_size: int,
    ema_decay: float,
    save_every: int,
    grad_clip: float,
    accelerator: str = "auto",
    devices: int = 1,
) -> dict[str, Tensor]:
    """Train until `steps` optimiser steps are done, going on from `run_dir/last.ckpt` where there is one.

    `batch_size` is that of a step, shared out among `devices` processes (on a CPU two of one thread each are faster
    than one of two threads). Only the first of them returns.

    Returns:
        the EMA weights, keyed as in `module.state_dict()`.
    """
    keep = ModelCheckpoint(
        run_dir, save_last=True, every_n_train_steps=save_every, save_top_k=0, enable_version_counter=False
    )
    share = batch_size // devices
    loader = DataLoader(data, batch_size=share, shuffle=True, drop_last=len(data) >= batch_size)
    trainer = pl.Trainer(
        accelerator=accelerator,
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_steps=steps,
        callbacks=[EMAWeightAveraging(decay=ema_decay), keep],
        logger=CSVLogger(run_dir, name="log", version=""),
        gradient_clip_val=grad_clip,
        log_every_n_steps=10,
    )
    last = run_dir / "last.ckpt"
    trainer.fit(module, loader, ckpt_path=last if last.exists() else None, weights_only=True)
    trainer.save_checkpoint(last)
    if not trainer.is_global_zero:
        raise SystemExit
    return ema_weights(last)


def fit_as_configured(
    module: pl.LightningModule, data: Dataset, run_dir: Path, training, optim, *, ema_decay: float, devices: int
) -> dict[str, Tensor]:
    """`fit` with the sections `training` and `optim` of a configuration."""
    return fit(
        module,
        data,
        run_dir,
        steps=training.n_iters,
        batch_size=training.batch_size,
        ema_decay=ema_decay,
        save_every=training.snapshot_freq,
        grad_clip=optim.grad_clip,
        devices=devices,
    )


def seed_process(seed: int) -> None:
    """Seed this process: every one draws its own noise; weights come from the first."""
    pl.seed_everything(seed + rank_zero_only.rank)


def ema_weights(path: Path) -> dict[str, Tensor]:
    """The averaged weights of a checkpoint that `fit` wrote."""
    return torch.load(path, map_location="cpu", weights_only=True)["state_dict"]


def save_half(path: Path, weights: dict[str, Tensor]) -> None:
    """Write weights as safetensors in half precision, which is enough for weights; whole or not at all."""
    with replacing(path) as partial:
        save_file({key: x.half().contiguous() for key, x in weights.items()}, partial)
