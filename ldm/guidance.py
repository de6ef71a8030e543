"""Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598, equation 6) for any sampler."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from diffusion.steps import Model

Condition = Tensor | list | tuple | dict | None
"""A tensor with one row per image, or a nested list, tuple or dict of such tensors; None for an unconditional model."""

ConditionalModel = Callable[[Tensor, Tensor, Condition], Tensor]
"""`model(x_t, t, c)` -> eps with the shape of x_t, where t has shape (B,)."""


def batch_sizes(condition: Condition) -> set[int]:
    """Return the numbers of rows of the tensors in a condition: one if it is consistent, none for None."""
    return {len(leaf) for leaf in tree_leaves(condition) if leaf is not None}


def _shapes(condition: Condition) -> object:
    return tree_map(lambda leaf: None if leaf is None else tuple(leaf.shape), condition)


def guided(model: ConditionalModel, c: Condition = None, uc: Condition = None, scale: float = 1.0) -> Model:
    """Return the guided network eps(uc) + scale (eps(c) - eps(uc)) as a `Model`.

    It calls `model` once on 2 B samples, B with `uc` followed by B with `c`. If `scale` is 1 or `uc` is None, it is
    eps(c), with a call on B samples.

    Args:
        model: `model(x_t, t, c)` -> eps.
        c: condition, B rows; None for an unconditional model.
        uc: null condition, with the structure and the shapes of `c`.
        scale: 0 ignores `c`, values above 1 strengthen it.

    Raises:
        ValueError: `uc` differs from `c` in its structure or shapes.
    """
    if uc is None or scale == 1:
        return lambda x_t, t: model(x_t, t, c)
    if _shapes(uc) != _shapes(c):
        raise ValueError(f"condition {_shapes(c)} and unconditional condition {_shapes(uc)} differ in shape")
    both = tree_map(lambda *rows: torch.cat(rows), uc, c)

    def predict(x_t: Tensor, t: Tensor) -> Tensor:
        eps_uc, eps_c = model(torch.cat([x_t, x_t]), torch.cat([t, t]), both).chunk(2)
        return eps_uc + scale * (eps_c - eps_uc)

    return predict
