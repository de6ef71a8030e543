"""Attention and transformer blocks against independent formulas."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.blocks import ValueProduct
from ldm.modules.attention import (
    BasicTransformerBlock,
    CrossAttention,
    CrossScoreProduct,
    CrossValueProduct,
    GatedLinear,
    SpatialTransformer,
)
from ldm.modules.diffusionmodules.blocks import AttentionBlock, PackedAttention, ScoreProduct
from tests.ldm.drawn import draw, drawn


def operands(module: nn.Module, run: Callable[[], object]) -> tuple[Tensor, ...]:
    """What `module` is called with, by position and once, within `run()`."""
    seen = []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args))
    run()
    handle.remove()
    (args,) = seen
    return args


def heads(x: Tensor, n: int) -> Tensor:
    """(B, N, n * d) -> (B, n, N, d)."""
    return torch.stack(x.chunk(n, dim=2), dim=1)


def scaled_dot_product(layer: CrossAttention, x: Tensor, context: Tensor) -> Tensor:
    q, k, v = (heads(y, layer.heads) for y in (layer.to_q(x), layer.to_k(context), layer.to_v(context)))
    return layer.to_out(torch.cat(F.scaled_dot_product_attention(q, k, v).unbind(1), dim=2))


@torch.no_grad()
def test_cross_attention_is_scaled_dot_product_attention():
    layer = drawn(CrossAttention(12, 10, heads=3, dim_head=5))
    x, context = draw(2, 7, 12), draw(2, 4, 10, seed=1)
    torch.testing.assert_close(layer(x, context), scaled_dot_product(layer, x, context))


@torch.no_grad()
def test_without_a_context_attention_is_to_the_sequence_itself():
    layer = drawn(CrossAttention(12, None, heads=2, dim_head=4))
    x = draw(2, 7, 12)
    torch.testing.assert_close(layer(x), scaled_dot_product(layer, x, x))


@torch.no_grad()
def test_packed_attention_is_scaled_dot_product_attention_head_by_head():
    qkv = draw(2, 3 * 2 * 5, 7)  # two heads of five channels, seven pixels
    q, k, v = (torch.stack([qkv[:, 15 * h + 5 * i :][:, :5].mT for h in range(2)], dim=1) for i in range(3))
    expected = torch.cat(F.scaled_dot_product_attention(q, k, v).unbind(1), dim=2).mT
    torch.testing.assert_close(PackedAttention(2)(qkv), expected)


@torch.no_grad()
def test_packed_products_get_scaled_queries_and_keys_then_values_and_softmax():
    layer, qkv = PackedAttention(1), draw(1, 48, 6)
    q, k = operands(layer.qkv_matmul, lambda: layer(qkv))
    torch.testing.assert_close(q, qkv[:, :16] / 2)  # 16^-1/4
    torch.testing.assert_close(k, qkv[:, 16:32] / 2)
    v, w = operands(layer.smv_matmul, lambda: layer(qkv))
    assert torch.equal(v, qkv[:, 32:])
    torch.testing.assert_close(w.sum(dim=2), torch.ones(1, 6))


@torch.no_grad()
def test_transformer_products_get_unscaled_queries_and_keys_then_values_and_softmax():
    layer = drawn(CrossAttention(6, 5, heads=1, dim_head=4))
    x, context = draw(1, 3, 6), draw(1, 2, 5, seed=1)
    q, k = operands(layer.qk_matmul, lambda: layer(x, context))
    assert torch.equal(q, layer.to_q(x))
    assert torch.equal(k, layer.to_k(context))
    v, w = operands(layer.smv_matmul, lambda: layer(x, context))
    assert torch.equal(v, layer.to_v(context))
    torch.testing.assert_close(w.sum(dim=2), torch.ones(1, 3))


@pytest.mark.parametrize("product", [ScoreProduct(), ValueProduct(), CrossScoreProduct(), CrossValueProduct()])
def test_products_of_slices_are_slices_of_the_product(product):
    square = draw(4, 5, 5), draw(4, 5, 5, seed=1)
    whole = product(*square)
    torch.testing.assert_close(torch.cat([product(*(x[i : i + 2] for x in square)) for i in (0, 2)]), whole)


def test_transformer_products_of_slices_of_queries_are_slices_of_the_product():
    q, k, v = draw(3, 2, 6, 5)
    torch.testing.assert_close(CrossScoreProduct()(q[:, 2:], k), CrossScoreProduct()(q, k)[:, 2:])
    w = CrossScoreProduct()(q, k).softmax(dim=-1)
    torch.testing.assert_close(CrossValueProduct()(v, w[:, 2:]), CrossValueProduct()(v, w)[:, 2:])


@torch.no_grad()
def test_gate_is_the_second_half():
    layer = drawn(GatedLinear(4, 3))
    x = draw(2, 4)
    weight, bias = layer.proj.weight, layer.proj.bias
    gate = x @ weight[3:].T + bias[3:]
    expected = (x @ weight[:3].T + bias[:3]) * gate * (1 + torch.erf(gate / 2**0.5)) / 2
    torch.testing.assert_close(layer(x), expected)


@torch.no_grad()
def test_transformer_block_adds_three_normalized_steps():
    block = drawn(BasicTransformerBlock(8, n_heads=2, d_head=4, context_dim=6))
    x, context = draw(2, 5, 8), draw(2, 3, 6, seed=1)

    def normalized(x: Tensor, norm: nn.LayerNorm) -> Tensor:
        centred = x - x.mean(dim=2, keepdim=True)
        return centred / (centred.square().mean(dim=2, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias

    h = normalized(x, block.norm1)
    y = x + scaled_dot_product(block.attn1, h, h)
    y = y + scaled_dot_product(block.attn2, normalized(y, block.norm2), context)
    y = y + block.ff.net[2](block.ff.net[0](normalized(y, block.norm3)))
    torch.testing.assert_close(block(x, context), y)


@torch.no_grad()
@pytest.mark.parametrize("context", [None, draw(2, 3, 6, seed=1)])
def test_transformer_works_with_and_without_context_and_calls_its_blocks_with_tensors_only(context):
    layer = drawn(SpatialTransformer(32, 4, 8, depth=2, context_dim=None if context is None else 6))
    given = (draw(2, 32, 4, 4),) if context is None else (draw(2, 32, 4, 4), context)
    args = operands(layer.transformer_blocks[1], lambda: layer(*given))
    assert len(args) == len(given)
    assert all(isinstance(x, Tensor) for x in args)


@torch.no_grad()
@pytest.mark.parametrize("layer", [AttentionBlock(32, 4), SpatialTransformer(32, 4, 8, context_dim=6)])
def test_shuffled_pixels_give_shuffled_outputs(layer):
    # attention knows no positions; a mix-up of rows, columns, heads or channels would show
    x, context = draw(2, 32, 3, 4), (draw(2, 3, 6, seed=1),) * isinstance(layer, SpatialTransformer)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    shuffled = x.flatten(2)[:, :, order].view_as(x)
    expected = drawn(layer)(x, *context).flatten(2)[:, :, order].view_as(x)
    torch.testing.assert_close(layer(shuffled, *context), expected, atol=1e-5, rtol=1e-4)
    assert torch.dist(expected, shuffled) > 1


@torch.no_grad()
@pytest.mark.parametrize("layer", [AttentionBlock(32, 4), SpatialTransformer(32, 4, 8)])
def test_untrained_attention_passes_its_input_on(layer):
    x = draw(1, 32, 4, 4)
    assert torch.equal(layer(x), x)
