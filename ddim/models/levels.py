"""Parts of the DDPM UNet above its blocks: the time embedding, one level per resolution, and the middle."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddim.models.blocks import AttnBlock, ResnetBlock, timestep_embedding
from diffusion.blocks import Downsample, Upsample


class TimeEmbedding(nn.Module):
    """Sinusoidal embedding of the timesteps, followed by a two-layer perceptron.

    Args:
        dim: width of the sinusoidal embedding, at least 4.
        width: width of the result.
    """

    def __init__(self, dim: int, width: int):
        super().__init__()
        self.dim = dim
        self.dense = nn.ModuleList([nn.Linear(dim, width), nn.Linear(width, width)])

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """t: timesteps, (B,); dtype: of the parameters -> (B, width)."""
        first, second = self.dense
        return second(F.silu(first(timestep_embedding(t, self.dim).to(dtype))))


class Level(nn.Module):
    """Residual blocks at one resolution, with attention after each of them or after none."""

    def __init__(self, blocks: Iterable[ResnetBlock], attn: Iterable[AttnBlock]):
        super().__init__()
        self.block = nn.ModuleList(blocks)
        self.attn = nn.ModuleList(attn)

    def step(self, i: int, h: Tensor, temb: Tensor) -> Tensor:
        """Apply block `i` and its attention, if any: h (B, C, H, W), temb (B, width) -> (B, C', H, W)."""
        h = self.block[i](h, temb)
        return self.attn[i](h) if len(self.attn) else h


class DownLevel(Level):
    """A level of the down path; the last one has no downsampling."""

    def __init__(self, blocks: Iterable[ResnetBlock], attn: Iterable[AttnBlock], downsample: Downsample | None):
        super().__init__(blocks, attn)
        self.downsample = downsample

    def forward(self, h: Tensor, temb: Tensor) -> list[Tensor]:
        """h: (B, C, H, W), temb: (B, width) -> output of each block, and of the downsampling: the skip connections."""
        outputs = []
        for i in range(len(self.block)):
            h = self.step(i, h, temb)
            outputs.append(h)
        if self.downsample is not None:
            outputs.append(self.downsample(h))
        return outputs


class UpLevel(Level):
    """A level of the up path; the last one has no upsampling."""

    def __init__(self, blocks: Iterable[ResnetBlock], attn: Iterable[AttnBlock], upsample: Upsample | None):
        super().__init__(blocks, attn)
        self.upsample = upsample

    def forward(self, h: Tensor, skips: list[Tensor], temb: Tensor) -> Tensor:
        """h: (B, C, H, W), temb: (B, width) -> (B, C', 2 H, 2 W), or (B, C', H, W) without upsampling.

        Each block takes the last of `skips` off the list, to concatenate it to its input.
        """
        for i in range(len(self.block)):
            h = self.step(i, torch.cat([h, skips.pop()], dim=1), temb)
        return h if self.upsample is None else self.upsample(h)


class Middle(nn.Module):
    """The coarsest resolution between the two paths: two residual blocks with attention between them."""

    def __init__(self, block_1: ResnetBlock, attn_1: AttnBlock, block_2: ResnetBlock):
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = block_1, attn_1, block_2

    def forward(self, h: Tensor, temb: Tensor) -> Tensor:
        """h: (B, C, H, W), temb: (B, width) -> the shape of h."""
        return self.block_2(self.attn_1(self.block_1(h, temb)), temb)
