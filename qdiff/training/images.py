"""The named images that the bundled models are trained on."""

import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from qdiff.errors import UserError


class ImageDataset(Dataset):
    """Images of an `.npz` archive with the arrays `images` (N, H, W, 3) uint8, `names` and `category`.

    Args:
        path: the archive; read without pickle.
        size: side of the images in pixels; larger ones are averaged down.
        categories: keep only these; all when empty.
        flip: mirror each image with probability 1/2.

    Raises:
        UserError: no such archive, or one that lacks an array, or no image is left.
    """

    def __init__(self, path: str | Path, size: int, categories: list[str] = (), flip: bool = False):
        self.path = path
        images, names, category = _read(path)
        kept = np.isin(category, list(categories)) if categories else np.full(len(category), True)
        if not kept.any():
            raise UserError(f"{path} has no image of {list(categories)}: it has {sorted(set(category.tolist()))}")
        pixels = torch.from_numpy(images[kept]).permute(0, 3, 1, 2).float() / 127.5 - 1
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


class Unlabelled(Dataset):
    """Images alone, without their labels.

    Args:
        dataset: yields pairs (image, label).
    """

    def __init__(self, dataset: ImageDataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> tuple[Tensor]:
        return (self.dataset[i][0],)


def _read(path: str | Path) -> list[np.ndarray]:
    layout = "see models/ddim/emoji32/README.md for the layout"
    try:
        with np.load(path, allow_pickle=False) as archive:
            return [archive[name] for name in ("images", "names", "category")]
    except KeyError as error:
        raise UserError(f"{path} lacks an array ({error.args[0]}): {layout}") from None
    except (OSError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"cannot read {path} as images ({error}): {layout}") from None
