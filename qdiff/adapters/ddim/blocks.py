"""Pixel-space UNets of the DDPM and DDIM checkpoints."""

from functools import partial

from torch import nn

from ddim.models.blocks import AttnBlock, ResnetBlock
from ddim.models.diffusion import Model
from diffusion.blocks import ScoreProduct, ValueProduct
from qdiff.adapters import Adapter, Contraction, ProductKind, from_zero, shortcut_splits

ADAPTER = Adapter(
    family="ddim",
    build=Model,
    blocks=(ResnetBlock, AttnBlock),
    products={
        ScoreProduct: ProductKind(("q", "k"), legacy_owner=True, contraction=Contraction("bci,bcj->bij", scaled=True)),
        ValueProduct: ProductKind(
            ("v", "w"), softmax="w", softmax_spec=from_zero, legacy_owner=True, contraction=Contraction("bcj,bij->bci")
        ),
    },
    plain=(nn.GroupNorm,),
    sensitive={
        "ends": ("model.conv_in", "model.conv_out"),
        "time": ("model.temb.dense.*", "*.temb_proj"),
    },
    splits=partial(shortcut_splits, block=ResnetBlock, shortcut="nin_shortcut"),
)
