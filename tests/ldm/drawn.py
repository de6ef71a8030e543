"""Tensors and parameters that are the same in every run."""

from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def drawn(module: M) -> M:
    """`module` with all its parameters drawn, so that none is zero, and in evaluation mode."""
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p.copy_(draw(*p.shape, seed=i) / max(p[0].numel(), 1) ** 0.5)
    return module.eval()
