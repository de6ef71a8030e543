"""Attention in slices: the same numbers and gradients, with a bound on the scores that exist at a time."""

import pytest
import torch
from torch import Tensor

from ldm.modules import slices
from ldm.modules.attention import CrossAttention
from ldm.modules.diffusionmodules.blocks import AttentionBlock
from ldm.modules.slices import SCORES, in_slices, repeat_slices

BATCH, TOKENS, WIDTH = 3, 16, 32


@pytest.fixture(params=["transformer", "pixels"])
def attention(request):
    """A module with four heads, its input, and the elements of the scores of one head."""
    torch.manual_seed(0)
    if request.param == "transformer":
        return CrossAttention(WIDTH, None, heads=4, dim_head=8), torch.randn(BATCH, TOKENS, WIDTH), TOKENS**2
    module = AttentionBlock(WIDTH, 4)
    torch.nn.init.normal_(module.proj_out.weight)
    return module, torch.randn(BATCH, WIDTH, 4, 4), TOKENS**2


def scores_of(module, run) -> list[int]:
    """Sizes of the softmax's operands."""
    sizes = []
    product = module.smv_matmul if hasattr(module, "smv_matmul") else module.attention.smv_matmul
    handle = product.register_forward_pre_hook(lambda m, args: sizes.append(args[1].numel()))
    run()
    handle.remove()
    return sizes


@pytest.mark.parametrize("heads", [1, 5, 12])
def test_slices_change_no_number_and_no_gradient(heads, attention, monkeypatch):
    module, x, each = attention

    def gradients() -> tuple[Tensor, ...]:
        given = x.clone().requires_grad_(True)
        output = module(given)
        return output, *torch.autograd.grad(output.square().sum(), [given, *module.parameters()])

    expected = gradients()
    assert scores_of(module, lambda: module(x)) == [BATCH * 4 * each]
    limit = heads * each + each // 2
    monkeypatch.setattr(slices, "SCORES", limit)
    found = gradients()
    with torch.no_grad():
        sizes = scores_of(module, lambda: module(x))
    assert max(sizes) <= limit and sum(sizes) == BATCH * 4 * each
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_slice_is_computed_again_instead_of_kept(monkeypatch):
    calls = []

    def attend(q: Tensor) -> Tensor:
        calls.append(len(q))
        return q.exp()

    q = torch.randn(6, 2, requires_grad=True)
    monkeypatch.setattr(slices, "SCORES", 20)
    in_slices(attend, q, scores=10).sum().backward()
    assert calls == [2, 2, 2] * 2
    torch.testing.assert_close(q.grad, q.exp())


def test_slices_are_repeated_and_the_last_pass_counts():
    calls = []

    def attend(q: Tensor) -> Tensor:
        calls.append(len(q))
        return q + len(calls)

    q = torch.zeros(2, 1)
    with pytest.raises(ZeroDivisionError), repeat_slices(lambda: range(3)):
        assert in_slices(attend, q, scores=SCORES).tolist() == [[5], [6]]
        raise ZeroDivisionError
    assert in_slices(attend, q, scores=1).tolist() == [[7], [7]]
    assert calls == [1] * 6 + [2]


def test_one_entry_is_the_least():
    assert torch.equal(in_slices(torch.neg, torch.ones(2, 3), scores=10 * SCORES), -torch.ones(2, 3))
