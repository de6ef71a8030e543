"""Optimiser of the bundled models."""

import math
from collections.abc import Iterable
from typing import Protocol

import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import nn


class Optim(Protocol):
    """Settings of Adam, as in `qdiff.training.sections.Optim`."""

    lr: float
    beta1: float
    eps: float
    weight_decay: float


def warm_cosine(
    parameters: Iterable[nn.Parameter], optim: Optim, *, warmup: int, steps: int
) -> OptimizerLRSchedulerConfig:
    """Return Adam with a learning rate that rises linearly, then falls to 0 as a cosine, for `configure_optimizers`.

    Args:
        parameters: to be trained.
        optim: settings.
        warmup: steps of the rise, >= 0.
        steps: of the whole training, >= 1.
    """

    def rate(step: int) -> float:
        warm = min(1.0, (step + 1) / max(warmup, 1))
        return warm * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))

    betas = (optim.beta1, 0.999)
    adam = torch.optim.Adam(parameters, lr=optim.lr, betas=betas, eps=optim.eps, weight_decay=optim.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, rate)
    return {"optimizer": adam, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
