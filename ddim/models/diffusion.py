"""The noise-prediction UNet of the published CIFAR-10 and LSUN checkpoints (Ho et al. 2020; Song et al. 2021)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddim.models.blocks import AttnBlock, ResnetBlock, timestep_embedding
from diffusion.blocks import Downsample, Upsample, normalize


class Level(nn.Module):
    """One resolution: its residual blocks, attention after each of them or none, and a change of resolution."""

    def __init__(self, blocks: list[nn.Module], attn: list[nn.Module]):
        super().__init__()
        self.block = nn.ModuleList(blocks)
        self.attn = nn.ModuleList(attn)

    def step(self, i: int, h: Tensor, temb: Tensor) -> Tensor:
        """Residual block `i`, followed by its attention where the level has it."""
        h = self.block[i](h, temb)
        return self.attn[i](h) if len(self.attn) else h


class Model(nn.Module):
    """eps_theta(x_t, t) of DDPM with exactly the parameter names of the published checkpoints.

    Args:
        config: namespace or OmegaConf node with the sections `model` (`ch`, `out_ch`, `ch_mult`, `num_res_blocks`,
            `attn_resolutions`, `dropout`, `in_channels`, `resamp_with_conv`) and `data` (`image_size`), as in
            `configs/cifar10.yml`.

    Raises:
        ValueError: `ch` is not a multiple of 32 or `image_size` cannot be halved once per level.
    """

    def __init__(self, config):
        super().__init__()
        m, size = config.model, config.data.image_size
        mult = tuple(m.ch_mult)
        if m.ch % 32 or size % 2 ** (len(mult) - 1):
            raise ValueError(f"model.ch={m.ch} must be a multiple of 32, data.image_size={size} of 2^{len(mult) - 1}")
        self.ch, self.in_channels, self.resolution = m.ch, m.in_channels, size
        temb_ch = 4 * m.ch
        widths = [m.ch * k for k in mult]

        def res(cin, cout, skip=0):
            return ResnetBlock(cin, cout, temb_ch, m.dropout, skip)

        def level(blocks, width, i):
            attends = size // 2**i in m.attn_resolutions
            return Level(blocks, [AttnBlock(width) for _ in blocks] if attends else [])

        self.temb = nn.Module()
        self.temb.dense = nn.ModuleList([nn.Linear(m.ch, temb_ch), nn.Linear(temb_ch, temb_ch)])
        self.conv_in = nn.Conv2d(m.in_channels, m.ch, 3, padding=1)

        self.down = nn.ModuleList()
        below = m.ch
        for i, width in enumerate(widths):
            blocks = [res(below if j == 0 else width, width) for j in range(m.num_res_blocks)]
            self.down.append(level(blocks, width, i))
            if i + 1 < len(widths):
                self.down[i].downsample = Downsample(width, m.resamp_with_conv)
            below = width

        self.mid = nn.Module()
        self.mid.block_1 = res(below, below)
        self.mid.attn_1 = AttnBlock(below)
        self.mid.block_2 = res(below, below)

        self.up = nn.ModuleList()
        for i in reversed(range(len(widths))):
            width, finer = widths[i], widths[i - 1] if i else m.ch
            skips = [width] * m.num_res_blocks + [finer]  # the down path's outputs, last one first
            blocks = [res((below if j == 0 else width) + s, width, skip=s) for j, s in enumerate(skips)]
            self.up.insert(0, level(blocks, width, i))
            if i:
                self.up[0].upsample = Upsample(width, m.resamp_with_conv)
            below = width

        self.norm_out = normalize(below)
        self.conv_out = nn.Conv2d(below, m.out_ch, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Predicted noise.

        Args:
            x: noisy images x_t, shape (B, in_channels, image_size, image_size), float.
            t: timesteps in 0..num_diffusion_timesteps - 1, shape (B,).

        Returns:
            shape (B, out_ch, image_size, image_size).

        Raises:
            ValueError: the images have another size than the network.
        """
        if x.shape[1:] != (self.in_channels, self.resolution, self.resolution):
            raise ValueError(
                f"images are {tuple(x.shape[1:])}, the network takes {self.in_channels, *[self.resolution] * 2}"
            )
        temb = timestep_embedding(t, self.ch).to(x.dtype)
        temb = self.temb.dense[1](F.silu(self.temb.dense[0](temb)))

        h = self.conv_in(x)
        skips = [h]
        for level in self.down:
            for i in range(len(level.block)):
                h = level.step(i, h, temb)
                skips.append(h)
            if hasattr(level, "downsample"):
                h = level.downsample(h)
                skips.append(h)

        h = self.mid.block_2(self.mid.attn_1(self.mid.block_1(h, temb)), temb)

        for level in reversed(self.up):
            for i in range(len(level.block)):
                h = level.step(i, torch.cat([h, skips.pop()], dim=1), temb)
            if hasattr(level, "upsample"):
                h = level.upsample(h)
        return self.conv_out(F.silu(self.norm_out(h)))
