"""Encoder and decoder of the first stages (Esser et al. 2021, appendix A), with published state-dict names."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.blocks import Downsample, Upsample, normalize
from ldm.modules.diffusionmodules.first_stage_blocks import AttnBlock, DownLevel, ResnetBlock, UpLevel


@dataclass(frozen=True)
class AutoencoderSettings:
    """The section `ddconfig` of a configuration.

    Args:
        ch: channels of the first level, a multiple of 32.
        ch_mult: channels of each level divided by `ch`.
        num_res_blocks: residual blocks per level of the encoder; the decoder has one more.
        attn_resolutions: edges, in pixels, of the levels with attention; the middle always has it.
        in_channels, out_ch: channels of the encoded image and of the decoded one.
        resolution: edge, in pixels, of the image to which `attn_resolutions` refers; other sizes work too.
        z_channels: channels of the latent.
        double_z: the encoder returns twice as many channels, the means and log variances of a distribution.
        dropout: probability within the residual blocks.
        resamp_with_conv: changes of resolution contain a convolution.
    """

    ch: int
    ch_mult: Sequence[int]
    num_res_blocks: int
    attn_resolutions: Sequence[int]
    in_channels: int
    out_ch: int
    resolution: int
    z_channels: int
    double_z: bool = True
    dropout: float = 0.0
    resamp_with_conv: bool = True

    @property
    def widths(self) -> list[int]:
        """Channels of each level."""
        return [self.ch * mult for mult in self.ch_mult]

    @property
    def factor(self) -> int:
        """Edge of an image divided by that of its latent."""
        return 2 ** (len(self.ch_mult) - 1)

    def blocks(self, i: int, cin: int, num_blocks: int) -> tuple[list[ResnetBlock], list[AttnBlock]]:
        """Make the residual blocks of level `i`, entered with `cin` channels, and the attention after each or none."""
        width = self.widths[i]
        blocks = [ResnetBlock(width if j else cin, width, self.dropout) for j in range(num_blocks)]
        attends = self.resolution // 2**i in self.attn_resolutions
        return blocks, [AttnBlock(width) for _ in blocks] if attends else []

    def middle(self) -> nn.Sequential:
        """Make the layers at the coarsest resolution: two residual blocks with attention between them."""
        width = self.widths[-1]
        return nn.Sequential(
            OrderedDict(
                block_1=ResnetBlock(width, width, self.dropout),
                attn_1=AttnBlock(width),
                block_2=ResnetBlock(width, width, self.dropout),
            )
        )


class Encoder(nn.Module):
    """Encoder from images to latents, or to the parameters of their distribution."""

    def __init__(self, settings: AutoencoderSettings):
        super().__init__()
        s, widths = settings, settings.widths
        self.conv_in = nn.Conv2d(s.in_channels, s.ch, 3, padding=1)
        self.down = nn.ModuleList()
        for i, cin in enumerate([s.ch, *widths[:-1]]):
            blocks, last = s.blocks(i, cin, s.num_res_blocks), i + 1 == len(widths)
            self.down.append(DownLevel(*blocks, None if last else Downsample(widths[i], s.resamp_with_conv)))
        self.mid = s.middle()
        self.norm_out = normalize(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 2 * s.z_channels if s.double_z else s.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, in_channels, H, W) -> (B, z_channels or twice as many, H / 2^(levels - 1), W / 2^(levels - 1))."""
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """Decoder from latents to images."""

    def __init__(self, settings: AutoencoderSettings):
        super().__init__()
        s, widths = settings, settings.widths
        self.conv_in = nn.Conv2d(s.z_channels, widths[-1], 3, padding=1)
        self.mid = s.middle()
        self.up = nn.ModuleList()
        for i, cin in enumerate([*widths[1:], widths[-1]]):
            blocks = s.blocks(i, cin, s.num_res_blocks + 1)
            self.up.append(UpLevel(*blocks, Upsample(widths[i], s.resamp_with_conv) if i else None))
        self.norm_out = normalize(widths[0])
        self.conv_out = nn.Conv2d(widths[0], s.out_ch, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """z: (B, z_channels, h, w) -> (B, out_ch, h * 2^(levels - 1), w * 2^(levels - 1))."""
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))
