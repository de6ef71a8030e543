"""Residual and attention blocks of the first stages, with published state-dict names."""

from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.blocks import Downsample, Upsample, normalize, shortcut


class ResnetBlock(nn.Module):
    """Residual block with two convolutions.

    Args:
        in_channels, out_channels: channels of the input and of the output, multiples of 32.
        dropout: probability before the second convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, dropout: float):
        super().__init__()
        self.norm1 = normalize(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = normalize(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = shortcut(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, in_channels, H, W) -> (B, out_channels, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.nin_shortcut(x) + h


class AttnBlock(nn.Module):
    """Single-head self-attention over all pixels, with a residual connection.

    First stages stay in full precision and see large images, so that attention is fused instead of swappable products.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm = normalize(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) -> the same shape."""
        h = self.norm(x)
        # (B, 1, H*W, C) each, contiguous, which lets the kernel compute attention without all scores in memory
        q, k, v = (layer(h).flatten(2).mT.contiguous()[:, None] for layer in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(h[:, 0].mT.reshape(x.shape))


class Level(nn.Module):
    """Residual blocks at one resolution, with attention after each of them or after none."""

    def __init__(self, blocks: Iterable[ResnetBlock], attn: Iterable[AttnBlock]):
        super().__init__()
        self.block = nn.ModuleList(blocks)
        self.attn = nn.ModuleList(attn)

    def forward(self, h: Tensor) -> Tensor:
        """h: (B, C, H, W) -> (B, C', H, W)."""
        for i, block in enumerate(self.block):
            h = block(h)
            if len(self.attn):
                h = self.attn[i](h)
        return h


class DownLevel(Level):
    """A level of the encoder; the last one has no downsampling."""

    def __init__(self, blocks: Iterable[ResnetBlock], attn: Iterable[AttnBlock], downsample: Downsample | None):
        super().__init__(blocks, attn)
        self.downsample = downsample

    def forward(self, h: Tensor) -> Tensor:
        """h: (B, C, H, W) -> (B, C', H / 2, W / 2), or (B, C', H, W) without downsampling."""
        h = super().forward(h)
        return h if self.downsample is None else self.downsample(h)


class UpLevel(Level):
    """A level of the decoder; the last one has no upsampling."""

    def __init__(self, blocks: Iterable[ResnetBlock], attn: Iterable[AttnBlock], upsample: Upsample | None):
        super().__init__(blocks, attn)
        self.upsample = upsample

    def forward(self, h: Tensor) -> Tensor:
        """h: (B, C, H, W) -> (B, C', 2 H, 2 W), or (B, C', H, W) without upsampling."""
        h = super().forward(h)
        return h if self.upsample is None else self.upsample(h)
