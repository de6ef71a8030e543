"""Noise: every image draws from a stream of its own."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

Noise = Callable[[Tensor], Tensor]


def batch_noise(
    seed: int, indices: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu"
) -> tuple[Tensor, Noise]:
    """Standard Gaussian noise of which each image draws from a stream of its own, determined by (seed, index) alone.

    Neither the batch nor the device nor earlier images have a part in it: the numbers are drawn on the CPU in float32,
    then moved. Streams are numpy's, because a generator of torch on the CPU takes 32 bits of a seed, and among 50000
    images two could well be alike.

    Args:
        seed: of the run, >= 0.
        indices: numbers of the images, >= 0; the length is B.
        shape: of one x_T, such as (C, H, W).
        device: of x_T.

    Returns:
        x_T, float32 of shape (B, *shape), and `noise(x)`: the next numbers of each image's stream, with the shape,
        dtype and device of x, whose rows are the images; ValueError if they are not B.
    """
    streams = [np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(i,)))) for i in indices]

    def noise(x: Tensor) -> Tensor:
        rows = [s.standard_normal(row.shape, dtype=np.float32) for s, row in zip(streams, x, strict=True)]
        return torch.from_numpy(np.stack(rows)).to(x)

    return noise(torch.empty(len(indices), *shape, device=device)), noise
