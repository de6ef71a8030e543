"""The noise-prediction UNet of the published CIFAR-10 and LSUN checkpoints (Ho et al. 2020; Song et al. 2021)."""

import torch.nn.functional as F
from torch import Tensor, nn

from ddim.models.blocks import AttnBlock, ResnetBlock
from ddim.models.levels import DownLevel, Middle, TimeEmbedding, UpLevel
from diffusion.blocks import Downsample, Upsample, normalize


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

        def res(cin: int, cout: int, skip: int = 0) -> ResnetBlock:
            return ResnetBlock(cin, cout, temb_ch, m.dropout, skip)

        def attention(i: int, count: int) -> list[AttnBlock]:
            return [AttnBlock(widths[i]) for _ in range(count)] if size // 2**i in m.attn_resolutions else []

        # modules are made in the order in which the published code draws their weights
        self.temb = TimeEmbedding(m.ch, temb_ch)
        self.conv_in = nn.Conv2d(m.in_channels, m.ch, 3, padding=1)

        self.down = nn.ModuleList()
        below = m.ch
        for i, width in enumerate(widths):
            blocks = [res(below if j == 0 else width, width) for j in range(m.num_res_blocks)]
            attn = attention(i, len(blocks))
            last = i + 1 == len(widths)
            self.down.append(DownLevel(blocks, attn, None if last else Downsample(width, m.resamp_with_conv)))
            below = width

        self.mid = Middle(res(below, below), AttnBlock(below), res(below, below))

        self.up = nn.ModuleList()
        for i in reversed(range(len(widths))):
            width, finer = widths[i], widths[i - 1] if i else m.ch
            skips = [width] * m.num_res_blocks + [finer]  # the down path's outputs, last one first
            blocks = [res((below if j == 0 else width) + s, width, skip=s) for j, s in enumerate(skips)]
            attn = attention(i, len(blocks))
            self.up.insert(0, UpLevel(blocks, attn, Upsample(width, m.resamp_with_conv) if i else None))
            below = width

        self.norm_out = normalize(below)
        self.conv_out = nn.Conv2d(below, m.out_ch, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Predict the noise.

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
        temb = self.temb(t, x.dtype)
        h = self.conv_in(x)
        skips = [h]
        for level in self.down:
            skips += level(skips[-1], temb)
        h = self.mid(skips[-1], temb)
        for level in reversed(self.up):
            h = level(h, skips, temb)
        return self.conv_out(F.silu(self.norm_out(h)))
