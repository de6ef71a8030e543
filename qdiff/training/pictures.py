"""The named pictures that the bundled models are trained on."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset


class Pictures(Dataset):
    """Pictures of an `.npz` archive with the arrays `images` (N, H, W, 3) uint8, `names` and `category`.

    Args:
        path: the archive; read without pickle.
        size: side of the pictures in pixels; larger ones are averaged down.
        categories: keep only these; all when empty.
        flip: mirror each picture with probability 1/2.

    Raises:
        ValueError: the archive lacks an array, or no picture is left.
    """

    def __init__(self, path: str | Path, size: int, categories: list[str] = (), flip: bool = False):
        with np.load(path, allow_pickle=False) as archive:
            missing = {"images", "names", "category"} - set(archive.files)
            if missing:
                raise ValueError(
                    f"{path} has no array {sorted(missing)}: see models/ddim/emoji32/README.md for the layout"
                )
            names, category = archive["names"], archive["category"]
            kept = np.isin(category, list(categories)) if categories else np.full(len(category), True)
            pixels = torch.from_numpy(archive["images"][kept])
        if not len(pixels):
            raise ValueError(f"{path} has no picture of {list(categories)}: it has {sorted(set(category))}")
        pixels = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
        self.images: Tensor = F.interpolate(pixels, size=(size, size), mode="area")  # (N, 3, size, size) in [-1, 1]
        self.names: list[str] = names[kept].tolist()
        self.classes: list[str] = sorted(set(category[kept].tolist()))
        self.labels = torch.tensor([self.classes.index(c) for c in category[kept].tolist()])
        self.flip = flip

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        image = self.images[i]
        if self.flip and torch.rand(()) < 0.5:
            image = image.flip(-1)
        return image, self.labels[i]
