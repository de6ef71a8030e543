"""A feature network that can be computed by hand."""

import torch
from torch import Tensor

from qdiff.evaluation.feature_network import Features, Identity


class MeanColours:
    """Vectors are mean colours, spatial features mean levels of the upper and the lower half, logits the levels' signs.

    Args:
        standard: pretend to be FID's Inception.
        categories: what the two classes are called; empty if that is not known.
    """

    def __init__(self, standard: bool = False, sha256: str = "a" * 64, categories: tuple[str, ...] = ()):
        self.identity = Identity("mean-colours", sha256, 3, 2, spatial=2, standard=standard, categories=categories)
        self.calls = 0

    def extract(self, images: Tensor) -> Features:
        self.calls += 1
        x = images.double()
        halves = x.unflatten(2, (2, -1)).mean((1, 3, 4))
        dark = (128 - x.mean((1, 2, 3))) / 16
        return Features(x.mean((2, 3)), torch.stack([dark, -dark], 1), halves)


def drawn_images(count: int, seed: int, size: int = 8) -> Tensor:
    """uint8 (count, 3, size, size) of varied colours."""
    g = torch.Generator().manual_seed(seed)
    colours = torch.randint(40, 216, (count, 3, 1, 1), generator=g)
    return (colours + torch.randint(-40, 40, (count, 3, size, size), generator=g)).to(torch.uint8)
