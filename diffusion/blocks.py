"""Layers shared by the UNets and first stages of `ddim` and `ldm`, named as in the published state dicts."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 32  # GroupNorm groups of every published checkpoint, so channel counts are multiples of 32


def normalize(channels: int) -> nn.GroupNorm:
    """Return a GroupNorm with the group count and epsilon of the published checkpoints."""
    return nn.GroupNorm(GROUPS, channels, eps=1e-6)


def shortcut(in_channels: int, out_channels: int) -> nn.Module:
    """Return the shortcut of a residual block: the identity, or a 1x1 convolution if the number of channels changes."""
    return nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)


class Upsample(nn.Module):
    """Nearest-neighbour upsampling by two, then a 3x3 convolution if `with_conv`."""

    def __init__(self, channels: int, with_conv: bool):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if with_conv else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) -> (B, C, 2 H, 2 W)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Downsample(nn.Module):
    """Downsampling by two: a strided 3x3 convolution, padded on the right and below only; or a mean over 2x2 pixels."""

    def __init__(self, channels: int, with_conv: bool):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2) if with_conv else nn.AvgPool2d(2)
        self.pad = (0, 1, 0, 1) if with_conv else (0, 0, 0, 0)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W), H and W even -> (B, C, H / 2, W / 2)."""
        return self.conv(F.pad(x, self.pad))


class ScoreProduct(nn.Module):
    """Product of queries and keys, the attention scores; a module without parameters, so that it can be swapped."""

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        """q, k: (B, C, N) -> scores (B, N, N), scaled by C^-1/2; row i belongs to query i."""
        return torch.bmm(q.transpose(1, 2), k) * q.shape[1] ** -0.5


class ValueProduct(nn.Module):
    """Product of values and attention weights; a module without parameters, so that it can be swapped."""

    def forward(self, v: Tensor, w: Tensor) -> Tensor:
        """v: (B, C, N), w: (B, N, N) whose rows sum to one -> (B, C, N)."""
        return torch.bmm(v, w.transpose(1, 2))
