"""The noise-prediction UNet of latent diffusion (Rombach et al. 2022; Dhariwal and Nichol 2021)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffusion.blocks import Upsample
from ldm.modules.diffusionmodules.blocks import Downsample, TimestepEmbedSequential
from ldm.modules.diffusionmodules.layer_factory import LayerFactory
from ldm.modules.diffusionmodules.util import normalization, timestep_embedding, zero_module


class UNetModel(nn.Module):
    """eps_theta(z_t, t, context) with exactly the parameter names of the published checkpoints.

    The published parameters `image_size`, `legacy` and `use_checkpoint` have no effect: the network takes latents of
    any size, the heads always divide the channels evenly, and only attention in slices recomputes activations.

    Args:
        in_channels, out_channels: channels of z_t and of the predicted noise.
        model_channels: width of the first level, a multiple of 32.
        num_res_blocks: residual blocks per level of the down path; the up path has one more.
        attention_resolutions: downsampling factors (1, 2, 4, ...) of the levels with attention.
        channel_mult: width of each level divided by `model_channels`.
        num_heads, num_head_channels: number or width of the attention heads; the width decides unless it is -1.
        dropout: probability within the residual blocks.
        conv_resample: changes of resolution contain a convolution.
        resblock_updown: residual blocks change the resolution.
        use_scale_shift_norm: the timestep scales as well as shifts.
        num_classes: number of classes whose embedding is added to that of the timestep; None: the network takes none.
        use_spatial_transformer: use transformer blocks, which attend to the context too.
        transformer_depth: transformer blocks per attention layer.
        context_dim: width of the context; required if and only if `use_spatial_transformer`.

    Raises:
        ValueError: the parameters contradict each other, or the heads do not divide the channels.
    """

    def __init__(
        self,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        channel_mult: Sequence[int] = (1, 2, 4, 8),
        num_heads: int = -1,
        num_head_channels: int = -1,
        dropout: float = 0.0,
        conv_resample: bool = True,
        resblock_updown: bool = False,
        use_scale_shift_norm: bool = False,
        num_classes: int | None = None,
        use_spatial_transformer: bool = False,
        transformer_depth: int = 1,
        context_dim: int | None = None,
    ):
        super().__init__()
        if use_spatial_transformer != (context_dim is not None):
            raise ValueError(f"use_spatial_transformer={use_spatial_transformer} contradicts context_dim={context_dim}")
        self.in_channels, self.model_channels = in_channels, model_channels
        self.takes_context = use_spatial_transformer
        self.stride = 2 ** (len(channel_mult) - 1)
        emb_channels = 4 * model_channels
        make = LayerFactory(
            emb_channels,
            dropout,
            use_scale_shift_norm,
            resblock_updown,
            conv_resample,
            [level for level in range(len(channel_mult)) if 2**level in attention_resolutions],
            num_heads,
            num_head_channels,
            transformer_depth,
            context_dim,
        )

        self.time_embed = nn.Sequential(
            nn.Linear(model_channels, emb_channels), nn.SiLU(), nn.Linear(emb_channels, emb_channels)
        )
        self.label_emb = None if num_classes is None else nn.Embedding(num_classes, emb_channels)

        widths = [model_channels * mult for mult in channel_mult]
        ch = model_channels
        down: list[list[nn.Module]] = [[nn.Conv2d(in_channels, ch, 3, padding=1)]]
        skips = [ch]
        for level, width in enumerate(widths):
            for _ in range(num_res_blocks):
                down.append([make.res(ch, width), *make.attentions(level, width)])
                skips.append(ch := width)
            if level + 1 < len(widths):
                down.append([make.resample(Downsample, ch)])
                skips.append(ch)
        self.input_blocks = nn.ModuleList(TimestepEmbedSequential(layers) for layers in down)

        self.middle_block = TimestepEmbedSequential([make.res(ch, ch), make.attention(ch), make.res(ch, ch)])

        up: list[list[nn.Module]] = []
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(num_res_blocks + 1):
                skip = skips.pop()
                up.append([make.res(ch + skip, width, skip=skip), *make.attentions(level, width)])
                ch = width
            if level:
                up[-1].append(make.resample(Upsample, ch))
        self.output_blocks = nn.ModuleList(TimestepEmbedSequential(layers) for layers in up)

        self.out = nn.Sequential(normalization(ch), nn.SiLU(), zero_module(nn.Conv2d(ch, out_channels, 3, padding=1)))

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """Predict the noise.

        Args:
            x: noisy latents z_t, shape (B, in_channels, H, W); H and W are multiples of 2^(levels - 1).
            timesteps: in 0..T - 1, shape (B,).
            context: shape (B, M, context_dim); required if and only if the network has a `context_dim`.
            y: class numbers, shape (B,), int64; required if and only if the network has `num_classes`.

        Returns:
            shape (B, out_channels, H, W).

        Raises:
            ValueError: an input is missing, unexpected or of a wrong shape.
        """
        self._check(x, context, y)
        emb = self.time_embed(timestep_embedding(timesteps, self.model_channels).to(x.dtype))
        if self.label_emb is not None:
            emb = emb + self.label_emb(y)
        skips = []
        h = x
        for stage in self.input_blocks:
            h = stage(h, emb, context)
            skips.append(h)
        h = self.middle_block(h, emb, context)
        for stage in self.output_blocks:
            h = stage(torch.cat([h, skips.pop()], dim=1), emb, context)
        return self.out(h)

    def _check(self, x: Tensor, context: Tensor | None, y: Tensor | None) -> None:
        if x.shape[1] != self.in_channels or any(size % self.stride for size in x.shape[2:]):
            raise ValueError(
                f"latents are {tuple(x.shape[1:])}, the network takes {self.in_channels} channels and multiples of "
                f"{self.stride}"
            )
        if (context is not None) != self.takes_context:
            raise ValueError(f"the network takes {'a' if self.takes_context else 'no'} context")
        if (y is None) != (self.label_emb is None):
            raise ValueError(f"the network takes {'no class' if self.label_emb is None else 'a class'} y")
