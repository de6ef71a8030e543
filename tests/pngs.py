"""PNGs of random pixels, and how tests damage them."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qdiff.files.images import write_image

COLOUR, GREY = (3, 6, 9), (1, 6, 9)


def random_pixels(shape: tuple[int, int, int], seed: int) -> Tensor:
    """Draw uint8 pixels of a shape (C, H, W)."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def write_random(folder: Path, shape: tuple[int, int, int], count: int) -> list[Path]:
    """Write 0.png, 1.png, ... with the pixels of seeds 0, 1, ..."""
    paths = [folder / f"{seed}.png" for seed in range(count)]
    for seed, path in enumerate(paths):
        write_image(path, random_pixels(shape, seed))
    return paths


def spoil(path: Path, place: int, value: bytes) -> None:
    """Overwrite bytes of a file from `place` on."""
    content = bytearray(path.read_bytes())
    content[place : place + len(value)] = value
    path.write_bytes(content)
