"""Sampling noise: one independent stream of numbers per image."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from diffusion.steps import Noise


def batch_noise(
    seed: int, indices: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu"
) -> tuple[Tensor, Noise]:
    """Draw standard Gaussian noise from one stream per image, which (seed, index) alone determines.

    Neither the batch nor the device nor other images matter: numbers are drawn on the CPU in float32, then moved. The
    streams are numpy's, because torch's CPU generator uses only 32 bits of a seed, and two of 50,000 images could get
    the same ones.

    Args:
        seed: of the run, >= 0.
        indices: of the B images, each >= 0.
        shape: of one x_T, such as (C, H, W).
        device: of x_T.

    Returns:
        x_T, float32 of shape (B, *shape), and a function `noise(x)`: x of shape (B, ...) -> the next numbers of each
        stream, with the shape, dtype and device of x. It raises ValueError for another batch size.
    """
    streams = [np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(i,)))) for i in indices]

    def noise(x: Tensor) -> Tensor:
        rows = [s.standard_normal(row.shape, dtype=np.float32) for s, row in zip(streams, x, strict=True)]
        return torch.from_numpy(np.stack(rows)).to(x)

    return noise(torch.empty(len(indices), *shape, device=device)), noise
