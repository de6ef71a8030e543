"""Named images that the bundled models are trained on."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from qdiff.errors import UserError


class ImageDataset(Dataset):
    """Images of an `.npz` archive with the arrays `images` (N, H, W, 3) uint8, `names` and `category`, both (N,).

    An item is an image (3, size, size), float32 in [-1, 1], and its label, int64.

    Args:
        path: the archive; read without pickle.
        size: pixels per side; other sizes are averaged down, or pixels repeated.
        categories: keep only these; all if empty.
        flip: mirror each image with probability 1/2.

    Attributes:
        images: float32, (N, 3, size, size).
        names: of the images, N.
        classes: the categories in alphabetical order.
        labels: index into `classes` of each image, int64, (N,).

    Raises:
        UserError: the archive cannot be read, lacks an array, or has no image of these categories.
    """

    def __init__(self, path: str | Path, size: int, categories: Sequence[str] = (), flip: bool = False):
        self.path = path
        images, names, category = _read(path)
        kept = np.isin(category, list(categories)) if categories else np.full(len(category), True)
        if not kept.any():
            found = sorted(set(category.tolist()))
            raise UserError(f"'{path}' has no image of {list(categories)}: choose among its categories {found}")
        pixels = torch.from_numpy(images[kept]).permute(0, 3, 1, 2).float() / 127.5 - 1
        self.images: Tensor = F.interpolate(pixels, size=(size, size), mode="area")
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
    """Images of a dataset without their labels; an item is a tuple of one image."""

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
        raise UserError(f"'{path}' lacks an array ({error.args[0]}): {layout}") from None
    except (OSError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"cannot read '{path}' as images ({error}): {layout}") from None
