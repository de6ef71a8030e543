"""The optimiser of the bundled models."""

import math
from collections.abc import Iterable

import torch
from torch import nn


def warm_cosine(parameters: Iterable[nn.Parameter], optim, *, warmup: int, steps: int) -> dict:
    """Adam whose learning rate rises linearly, then falls to 0 as a cosine; as `configure_optimizers` returns it.

    Args:
        parameters: what is trained.
        optim: section of a configuration with `lr`, `beta1`, `eps`, `weight_decay`.
        warmup: steps of the rise.
        steps: of the whole training.
    """

    def rate(step: int) -> float:
        warm = min(1.0, (step + 1) / max(warmup, 1))
        return warm * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))

    betas = (optim.beta1, 0.999)
    adam = torch.optim.Adam(parameters, lr=optim.lr, betas=betas, eps=optim.eps, weight_decay=optim.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, rate)
    return {"optimizer": adam, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
