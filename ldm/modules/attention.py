"""Transformer blocks of the latent UNet (Rombach et al. 2022, section 3.3), with published state-dict names."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.diffusionmodules.util import GROUPS, zero_module
from ldm.modules.slices import in_slices


class GatedLinear(nn.Module):
    """The GELU variant of gated linear units, (W x + b) * gelu(V x + c) elementwise (Shazeer 2020, equation 6).

    Args:
        width: width of the input.
        inner: width of the output.
    """

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)  # W and b, then V and c

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., width) -> (..., inner)."""
        values, gates = self.proj(x).unflatten(-1, (2, -1)).unbind(-2)
        return values * F.gelu(gates)


class FeedForward(nn.Module):
    """The gated perceptron of a transformer block, whose hidden layer is four times as wide as its input."""

    def __init__(self, dim: int):
        super().__init__()
        # layer 1 is a dropout in the published code, which no published network uses
        self.net = nn.Sequential(GatedLinear(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., dim) -> the same shape."""
        return self.net(x)


class CrossScoreProduct(nn.Module):
    """Product of queries and keys, the attention scores; a module without parameters, so that it can be swapped.

    Batch entries are independent, so that they may be computed in slices.
    """

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        """q: (B, N, d), k: (B, M, d) -> scores (B, N, M), scaled by d^-1/2."""
        return torch.bmm(q, k.transpose(1, 2)) * q.shape[2] ** -0.5


class CrossValueProduct(nn.Module):
    """Product of attention weights and values; a module without parameters, so that it can be swapped."""

    def forward(self, v: Tensor, w: Tensor) -> Tensor:
        """v: (B, M, d), w: (B, N, M), whose rows sum to one -> (B, N, d)."""
        return torch.bmm(w, v)


class CrossAttention(nn.Module):
    """Multi-head attention from a sequence to a context, or to itself.

    Args:
        query_dim: width of the sequence.
        context_dim: width of the context; None for self-attention.
        heads, dim_head: number and width of the heads.
    """

    def __init__(self, query_dim: int, context_dim: int | None, heads: int, dim_head: int):
        super().__init__()
        inner = heads * dim_head
        self.heads = heads
        self.to_q = nn.Linear(query_dim, inner, bias=False)
        self.to_k = nn.Linear(context_dim or query_dim, inner, bias=False)
        self.to_v = nn.Linear(context_dim or query_dim, inner, bias=False)
        self.qk_matmul = CrossScoreProduct()
        self.smv_matmul = CrossValueProduct()
        self.to_out = nn.Sequential(nn.Linear(inner, query_dim))

    def _split(self, x: Tensor) -> Tensor:
        """(B, N, heads * d) -> (B * heads, N, d)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2).flatten(0, 1)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.smv_matmul(v, self.qk_matmul(q, k).softmax(dim=-1))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x: (B, N, query_dim), context: (B, M, context_dim), `x` if it is None -> (B, N, query_dim)."""
        context = x if context is None else context
        q, k, v = (self._split(y) for y in (self.to_q(x), self.to_k(context), self.to_v(context)))
        h = in_slices(self._attend, q, k, v, scores=q.shape[1] * k.shape[1])
        return self.to_out(h.unflatten(0, (x.shape[0], -1)).transpose(1, 2).flatten(2))


class BasicTransformerBlock(nn.Module):
    """Self-attention, attention to the context and a perceptron, each with a layer norm before it and a residual.

    Args:
        dim: width of the sequence.
        n_heads, d_head: number and width of the heads.
        context_dim: width of the context; None: there is none, and the second attention is self-attention too.
    """

    def __init__(self, dim: int, n_heads: int, d_head: int, context_dim: int | None = None):
        super().__init__()
        self.attn1 = CrossAttention(dim, None, n_heads, d_head)
        self.ff = FeedForward(dim)
        self.attn2 = CrossAttention(dim, context_dim, n_heads, d_head)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x: (B, N, dim), context: (B, M, context_dim) -> (B, N, dim)."""
        # A sum takes the memory layout of its first operand, and the layout affects how later kernels round: with this
        # order, the activation codes are identical to those of the published quantized networks.
        x = self.attn1(self.norm1(x)) + x
        x = self.attn2(self.norm2(x), context) + x
        return self.ff(self.norm3(x)) + x


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels of a feature map as a sequence, with a residual connection.

    Args:
        in_channels: channels of the feature map, a multiple of 32.
        n_heads, d_head: number and width of the heads.
        depth: number of transformer blocks.
        context_dim: width of the context; None: there is none.
    """

    takes = ("context",)

    def __init__(self, in_channels: int, n_heads: int, d_head: int, depth: int = 1, context_dim: int | None = None):
        super().__init__()
        inner = n_heads * d_head
        self.norm = nn.GroupNorm(GROUPS, in_channels, eps=1e-6)
        self.proj_in = nn.Conv2d(in_channels, inner, 1)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(inner, n_heads, d_head, context_dim) for _ in range(depth)
        )
        self.proj_out = zero_module(nn.Conv2d(inner, in_channels, 1))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x: (B, C, H, W), context: (B, M, context_dim) -> (B, C, H, W)."""
        condition = () if context is None else (context,)
        h = self.proj_in(self.norm(x))
        tokens = h.flatten(2).transpose(1, 2)  # (B, H*W, inner)
        for block in self.transformer_blocks:
            tokens = block(tokens, *condition)
        h = self.proj_out(tokens.transpose(1, 2).reshape(h.shape))
        return h + x  # in this order for the same reason as in `BasicTransformerBlock`
