"""Training loop of all bundled models: EMA weights, checkpoints, resumption."""

from collections.abc import Sized
from pathlib import Path
from typing import cast

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities import rank_zero_only
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from qdiff.files.atomic import replacing
from qdiff.training.job import TrainingJob


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
    """Train for `steps` optimiser steps in all, resuming from `run_dir/last.ckpt` if it exists.

    Args:
        module: the model, its loss and its optimiser.
        data: examples, with a length.
        run_dir: folder of checkpoints and logs.
        steps: optimiser steps, >= 1.
        batch_size: examples per step, split among the devices.
        ema_decay: decay of the averaged weights per step, 0..1.
        save_every: steps between checkpoints, >= 1.
        grad_clip: largest norm of the gradient; 0 for no limit.
        accelerator: as `Trainer` of Lightning takes it.
        devices: processes; on a CPU, two of one thread each are faster than one of two threads.

    Returns:
        EMA weights, keyed as in `module.state_dict()`.

    Raises:
        SystemExit: in every process but the first.
    """
    keep = ModelCheckpoint(
        run_dir, save_last=True, every_n_train_steps=save_every, save_top_k=0, enable_version_counter=False
    )
    per_device, size = batch_size // devices, len(cast(Sized, data))
    loader = DataLoader(data, batch_size=per_device, shuffle=True, drop_last=size >= batch_size)
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
    module: pl.LightningModule,
    data: Dataset,
    job: TrainingJob,
    training: DictConfig,
    optim: DictConfig,
    *,
    ema_decay: float,
) -> dict[str, Tensor]:
    """Call `fit` with the settings of a configuration.

    Args:
        module, data, ema_decay: see `fit`.
        job: the run's folder and devices.
        training, optim: checked sections of the configuration.

    Returns:
        EMA weights of `module.model`, keyed as in its state dict.
    """
    weights = fit(
        module,
        data,
        job.run,
        steps=training.n_iters,
        batch_size=training.batch_size,
        ema_decay=ema_decay,
        save_every=training.snapshot_freq,
        grad_clip=optim.grad_clip,
        devices=job.devices,
    )
    return {key.removeprefix("model."): x for key, x in weights.items()}


def seed_process(seed: int) -> None:
    """Seed this process by `seed` plus its rank, so that each draws its own noise; weights come from rank 0."""
    pl.seed_everything(seed + getattr(rank_zero_only, "rank", 0))


def ema_weights(path: Path) -> dict[str, Tensor]:
    """Read the averaged weights of a checkpoint that `fit` wrote, on the CPU; keys and shapes as in the module."""
    return torch.load(path, map_location="cpu", weights_only=True)["state_dict"]


def save_half(path: Path, weights: dict[str, Tensor]) -> None:
    """Write weights, of any shape and dtype, as safetensors in float16, whole or not at all."""
    with replacing(path) as partial:
        save_file({key: x.half().contiguous() for key, x in weights.items()}, partial)
