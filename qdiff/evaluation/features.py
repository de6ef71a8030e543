"""A small classifier of 32 x 32 images, whose features compare sets of images. The distances are not FID."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qdiff.checkpoints.weights import load_weights
from qdiff.evaluation.feature_network import Features, Identity
from qdiff.files.digest import tensors_digest

# Of the bundled classifier's training images, in the order of its logits
CATEGORIES = (
    "Activities",
    "Animals & Nature",
    "Flags",
    "Food & Drink",
    "Objects",
    "People & Body",
    "Smileys & Emotion",
    "Symbols",
    "Travel & Places",
)
NAME = "emoji-classifier"
DIMENSION = 32  # of a feature vector
SIZE = 32  # pixels per side of the bundled classifier's training images


class FeatureNet(nn.Module):
    """Convolutions, a feature vector, and a linear layer that predicts the category from it.

    Args:
        categories: number of categories.
        width: channels of the first convolution; a multiple of 8.
    """

    def __init__(self, categories: int = len(CATEGORIES), width: int = 24):
        super().__init__()
        self.categories = categories
        self.trunk = nn.Sequential(
            *_convolution(3, width, stride=1),
            *_convolution(width, 2 * width, stride=2),
            *_convolution(2 * width, 4 * width, stride=2),
            *_convolution(4 * width, 4 * width, stride=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4 * width, DIMENSION),
        )
        self.head = nn.Sequential(nn.SiLU(), nn.Linear(DIMENSION, categories))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, categories), float32, of images (B, 3, H, W) in [-1, 1]; H = W = 32 works best."""
        return self.head(self.trunk(x))

    @property
    def identity(self) -> Identity:
        """Name, digest, sizes and categories; the digest is that of the weights, in whatever file they are."""
        named = CATEGORIES if self.categories == len(CATEGORIES) else ()
        return Identity(NAME, tensors_digest(self.state_dict()), DIMENSION, self.categories, categories=named)

    @torch.no_grad()
    def extract(self, images: Tensor) -> Features:
        """Compute feature vectors, the inputs of the last activation function, and logits.

        Args:
            images: (B, 3, H, W), uint8; those wider than 32 pixels are averaged down to 32 x 32.
        """
        x = _fit_size(images).to(next(self.parameters()).device)
        vectors = self.trunk(x.float() / 127.5 - 1)
        return Features(vectors.cpu(), self.head(vectors).cpu())


def load_feature_net(path: Path) -> FeatureNet:
    """Load a `FeatureNet` of `CATEGORIES` for evaluation. Raises UserError if the file is not one."""
    net = FeatureNet().eval()
    load_weights(net, path)
    return net


def _fit_size(images: Tensor) -> Tensor:
    if images.shape[-1] <= SIZE:
        return images
    return F.interpolate(images.float(), size=(SIZE, SIZE), mode="area").round().to(torch.uint8)


def _convolution(channels: int, out: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, out, 3, stride, padding=1), nn.GroupNorm(8, out), nn.SiLU()]
