"""A small classifier of 32 x 32 images, whose features compare sets of images. The distances are not FID."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qdiff.checkpoints.weights import load_weights

CATEGORIES = 9  # of the bundled classifier's training images
DIMENSION = 32  # of a feature vector
SIZE = 32  # pixels per side of the bundled classifier's training images


class FeatureNet(nn.Module):
    """Convolutions, a feature vector, and a linear layer that predicts the category from it.

    Args:
        categories: number of categories.
        width: channels of the first convolution; a multiple of 8.
    """

    frechet_name = "FD on emoji-classifier features (not FID)"
    frechet_meaning = (
        "Fréchet distance to the training images on the features of a small classifier of such images; it compares "
        "the rows of this table only, and not with the FID of a paper"
    )

    def __init__(self, categories: int = CATEGORIES, width: int = 24):
        super().__init__()
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

    @torch.no_grad()
    def recognised(self, images: Tensor, labels: Tensor) -> float:
        """Return the share of images whose category is predicted, 0..1.

        Args:
            images: (N, 3, H, W), uint8.
            labels: indices of their categories in alphabetical order, (N,), int64.
        """
        predicted = self.head(self.features(images).to(next(self.parameters()))).argmax(1)
        return (predicted.cpu() == labels).float().mean().item()

    @torch.no_grad()
    def features(self, images: Tensor, batch_size: int = 256) -> Tensor:
        """Compute feature vectors: the inputs of the last activation function.

        Args:
            images: (N, 3, H, W), uint8; those wider than 32 pixels are averaged down to 32 x 32.
            batch_size: images per forward pass.

        Returns:
            (N, DIMENSION), float64, on the CPU.
        """
        device = next(self.parameters()).device
        parts = [self.trunk(x.to(device).float() / 127.5 - 1) for x in _fit_size(images).split(batch_size)]
        return torch.cat(parts).double().cpu()


def load_feature_net(path: Path) -> FeatureNet:
    """Load a `FeatureNet` of `CATEGORIES` categories for evaluation. Raises UserError if the file is not one."""
    net = FeatureNet().eval()
    load_weights(net, path)
    return net


def _fit_size(images: Tensor) -> Tensor:
    if images.shape[-1] <= SIZE:
        return images
    return F.interpolate(images.float(), size=(SIZE, SIZE), mode="area").round().to(torch.uint8)


def _convolution(channels: int, out: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, out, 3, stride, padding=1), nn.GroupNorm(8, out), nn.SiLU()]
