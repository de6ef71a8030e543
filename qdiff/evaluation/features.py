"""A small classifier whose features tell how alike two sets of 32 x 32 images are. No Inception: numbers differ."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CATEGORIES = 9  # of the images that the bundled classifier was trained on
DIMENSION = 32  # of a feature vector
SIZE = 32  # pixels along an edge of the images that the bundled classifier was trained on


class FeatureNet(nn.Module):
    """Convolutions, then a feature vector, then one linear layer over it that names the category.

    Args:
        categories: number of classes.
        width: channels of the first convolution.
    """

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

    @staticmethod
    def fit_size(images: Tensor) -> Tensor:
        """Images (N, 3, H, W), uint8, averaged down to the size that the bundled classifier was trained on."""
        if images.shape[-1] <= SIZE:
            return images
        return F.interpolate(images.float(), size=(SIZE, SIZE), mode="area").round().to(torch.uint8)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1], best at 32 x 32 -> logits (B, categories)."""
        return self.head(self.trunk(x))

    @torch.no_grad()
    def recognised(self, images: Tensor, labels: Tensor) -> float:
        """Share of images whose category is named right.

        Args:
            images: (N, 3, H, W), uint8.
            labels: numbers of their categories in alphabetical order, (N,).
        """
        named = self.head(self.features(images).to(next(self.parameters()))).argmax(1)
        return (named.cpu() == labels).float().mean().item()

    @torch.no_grad()
    def features(self, images: Tensor, batch_size: int = 256) -> Tensor:
        """The input of the last layer's activation function, on the network's device and moved to the CPU.

        Args:
            images: (N, 3, H, W), uint8.
            batch_size: images at a time.

        Returns:
            (N, DIMENSION), float64.
        """
        device = next(self.parameters()).device
        parts = [self.trunk(x.to(device).float() / 127.5 - 1) for x in images.split(batch_size)]
        return torch.cat(parts).double().cpu()


def _convolution(channels: int, out: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, out, 3, stride, padding=1), nn.GroupNorm(8, out), nn.SiLU()]
