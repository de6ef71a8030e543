"""Residual and attention blocks of the latent UNet (Dhariwal and Nichol 2021), with published state-dict names."""

import torch
from torch import Tensor, nn

from diffusion.blocks import ValueProduct
from ldm.modules.diffusionmodules.util import normalization, zero_module
from ldm.modules.slices import in_slices


class TimestepEmbedSequential(nn.ModuleList):
    """Layers in sequence; each gets its input and those of `emb` and `context` that its class lists in `takes`."""

    def forward(self, h: Tensor, emb: Tensor, context: Tensor | None = None) -> Tensor:
        """h: (B, C, H, W), emb: (B, E), context: (B, M, D) if a layer takes it -> (B, C', H', W')."""
        conditions = {"emb": emb, "context": context}
        for layer in self:
            h = layer(h, *(conditions[name] for name in getattr(layer, "takes", ())))
        return h


class Downsample(nn.Module):
    """Downsampling by two: a strided 3x3 convolution if `with_conv`, or a mean over 2x2 pixels."""

    def __init__(self, channels: int, with_conv: bool):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if with_conv else nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W), H and W even -> (B, C, H / 2, W / 2)."""
        return self.op(x)


class ResBlock(nn.Module):
    """Residual block with two convolutions, between which the timestep shifts, or scales and shifts, the activations.

    Args:
        channels: channels of the input, the skip connection's included.
        emb_channels: width of the timestep embedding.
        dropout: probability before the second convolution.
        out_channels: channels of the output.
        use_scale_shift_norm: the timestep scales as well as shifts.
        resample: change of resolution, without parameters, applied in both branches; None: no change.
        skip_channels: how many of the *last* input channels come from a skip connection; 0 outside the up path.
    """

    takes = ("emb",)

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        dropout: float,
        out_channels: int,
        use_scale_shift_norm: bool = False,
        resample: nn.Module | None = None,
        skip_channels: int = 0,
    ):
        super().__init__()
        self.skip_channels = skip_channels
        self.use_scale_shift_norm = use_scale_shift_norm
        self.in_layers = nn.Sequential(
            normalization(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.resample = resample or nn.Identity()
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(emb_channels, 2 * out_channels if use_scale_shift_norm else out_channels)
        )
        self.out_layers = nn.Sequential(
            normalization(out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            zero_module(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x: (B, channels, H, W), emb: (B, emb_channels) -> (B, out_channels, H', W'), resampled."""
        norm, act, conv = self.in_layers
        h = conv(self.resample(act(norm(x))))
        norm, act, dropout, conv = self.out_layers
        shift = self.emb_layers(emb)[:, :, None, None]
        if self.use_scale_shift_norm:
            scale, shift = shift.chunk(2, dim=1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + shift)
        return self.skip_connection(self.resample(x)) + conv(dropout(act(h)))


class ScoreProduct(nn.Module):
    """Product of queries and keys, the attention scores; a module without parameters, so that it can be swapped.

    Batch entries are independent, so that they may be computed in slices.
    """

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        """q, k: (B, d, N), each already scaled by d^-1/4 -> scores (B, N, N); row i belongs to query i."""
        return torch.bmm(q.transpose(1, 2), k)


class PackedAttention(nn.Module):
    """Multi-head attention; queries, keys and values are packed head by head into the channels of one tensor."""

    def __init__(self, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.qkv_matmul = ScoreProduct()
        self.smv_matmul = ValueProduct()

    def forward(self, qkv: Tensor) -> Tensor:
        """qkv: (B, 3 C, N), for each head its queries, keys and values -> (B, C, N)."""
        batch, width, length = qkv.shape
        d = width // (3 * self.n_heads)
        q, k, v = qkv.reshape(batch * self.n_heads, 3 * d, length).chunk(3, dim=1)  # (B * heads, d, N) each
        scale = d**-0.25  # on both operands, as in the published networks, because it affects what is quantized
        h = in_slices(self._attend, q * scale, k * scale, v, scores=length**2)
        return h.reshape(batch, -1, length)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.smv_matmul(v, self.qkv_matmul(q, k).softmax(dim=-1))


class AttentionBlock(nn.Module):
    """Self-attention over all pixels, with a residual connection."""

    def __init__(self, channels: int, num_heads: int):
        super().__init__()
        self.norm = normalization(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.attention = PackedAttention(num_heads)
        self.proj_out = zero_module(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) -> the same shape."""
        h = self.attention(self.qkv(self.norm(x.flatten(2))))
        return x + self.proj_out(h).view_as(x)
