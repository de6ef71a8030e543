"""Make the layers of the latent UNet from its settings."""

from collections.abc import Collection
from dataclasses import dataclass

from torch import nn

from diffusion.blocks import Upsample
from ldm.modules.attention import SpatialTransformer
from ldm.modules.diffusionmodules.blocks import AttentionBlock, Downsample, ResBlock


@dataclass(frozen=True)
class LayerFactory:
    """Make the layers of one `UNetModel`, which differ only in their channels; the settings are explained there."""

    emb_channels: int
    dropout: float
    use_scale_shift_norm: bool
    resblock_updown: bool
    conv_resample: bool
    levels_with_attention: Collection[int]
    num_heads: int
    num_head_channels: int
    transformer_depth: int
    context_dim: int | None

    def res(self, cin: int, cout: int, resample: nn.Module | None = None, skip: int = 0) -> ResBlock:
        """Make a residual block; `skip` of its `cin` input channels come from a skip connection."""
        return ResBlock(cin, self.emb_channels, self.dropout, cout, self.use_scale_shift_norm, resample, skip)

    def resample(self, kind: type[Upsample] | type[Downsample], ch: int) -> nn.Module:
        """Make a change of resolution on `ch` channels."""
        if self.resblock_updown:
            return self.res(ch, ch, kind(ch, with_conv=False))
        return kind(ch, self.conv_resample)

    def attentions(self, level: int, ch: int) -> list[nn.Module]:
        """Make the attention after a residual block of this level: one layer or none."""
        return [self.attention(ch)] if level in self.levels_with_attention else []

    def attention(self, ch: int) -> nn.Module:
        """Make an attention layer on `ch` channels. Raises ValueError unless the heads divide them evenly."""
        heads = self.num_heads if self.num_head_channels == -1 else ch // self.num_head_channels
        if heads < 1 or ch % heads or self.num_head_channels not in {-1, ch // heads}:
            raise ValueError(
                f"num_heads={self.num_heads}, num_head_channels={self.num_head_channels} do not divide {ch} channels"
            )
        if self.context_dim is None:
            return AttentionBlock(ch, heads)
        return SpatialTransformer(ch, heads, ch // heads, self.transformer_depth, self.context_dim)
