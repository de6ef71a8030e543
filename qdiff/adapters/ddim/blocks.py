"""Pixel-space UNets of the DDPM and DDIM checkpoints."""

from dataclasses import replace
from functools import partial

from torch import nn

from ddim.models.blocks import AttnBlock, ResnetBlock
from ddim.models.diffusion import Model
from diffusion.blocks import ScoreProduct, ValueProduct
from qdiff.adapters import Adapter, ProductKind, as_activations, shortcut_splits
from qdiff.policy import QuantPolicy, QuantSpec


def _values(policy: QuantPolicy) -> tuple[QuantSpec, QuantSpec]:
    return policy.act, replace(policy.act, bits=policy.softmax_bits)


ADAPTER = Adapter(
    family="ddim",
    build=Model,
    blocks=(ResnetBlock, AttnBlock),
    products={
        ScoreProduct: ProductKind(("q", "k"), as_activations, legacy_owner=True),
        ValueProduct: ProductKind(("v", "w"), _values, legacy_owner=True),
    },
    plain=(nn.GroupNorm,),
    splits=partial(shortcut_splits, block=ResnetBlock, shortcut="nin_shortcut"),
)
