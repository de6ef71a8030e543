"""Building blocks of the DDPM UNet (Ho et al. 2020, appendix B), named as in the published state dicts."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.blocks import ScoreProduct, ValueProduct, normalize, shortcut


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """Compute the sinusoidal embedding of timesteps (Vaswani et al. 2017, section 3.5, as DDPM uses it).

    Args:
        t: timesteps, shape (B,), integer or float.
        dim: width of the embedding, at least 4.

    Returns:
        float32 of shape (B, dim): the sines of `dim // 2` frequencies, then their cosines.
    """
    half = dim // 2
    rate = torch.exp(torch.arange(half, dtype=torch.float32, device=t.device) * -(math.log(10000) / (half - 1)))
    angle = t.float()[:, None] * rate[None]
    embedding = torch.cat([angle.sin(), angle.cos()], dim=1)
    return F.pad(embedding, (0, dim % 2))


class ResnetBlock(nn.Module):
    """Residual block with two convolutions, between which the time embedding shifts the activations.

    Args:
        in_channels: channels of the input, the skip connection's included.
        out_channels: channels of the output.
        temb_channels: width of the time embedding.
        dropout: probability before the second convolution.
        skip_channels: how many of the *last* input channels come from a skip connection; 0 outside the up path.
    """

    def __init__(self, in_channels: int, out_channels: int, temb_channels: int, dropout: float, skip_channels: int = 0):
        super().__init__()
        self.skip_channels = skip_channels
        self.norm1 = normalize(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.temb_proj = nn.Linear(temb_channels, out_channels)
        self.norm2 = normalize(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = shortcut(in_channels, out_channels)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        """x: (B, in_channels, H, W), temb: (B, temb_channels) -> (B, out_channels, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.temb_proj(F.silu(temb))[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.nin_shortcut(x) + h


class AttnBlock(nn.Module):
    """Single-head self-attention over all pixels, with a residual connection; its products can be swapped."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = normalize(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.qk_matmul = ScoreProduct()
        self.smv_matmul = ValueProduct()
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) -> the same shape."""
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2) for layer in (self.q, self.k, self.v))  # (B, C, H*W) each
        w = self.qk_matmul(q, k).softmax(dim=-1)
        h = self.smv_matmul(v, w).unflatten(2, x.shape[2:])
        return x + self.proj_out(h)
