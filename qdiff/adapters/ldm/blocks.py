"""UNets of latent diffusion: LSUN, ImageNet, Stable Diffusion."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from torch import nn

from diffusion.blocks import ValueProduct
from ldm.modules.attention import BasicTransformerBlock, CrossScoreProduct, CrossValueProduct
from ldm.modules.diffusionmodules.blocks import AttentionBlock, ResBlock, ScoreProduct
from ldm.modules.diffusionmodules.util import GroupNorm32
from ldm.modules.slices import repeat_slices
from ldm.util import instantiate_from_config
from qdiff.adapters import Adapter, ProductKind, as_activations, shortcut_splits
from qdiff.policy import QuantPolicy, QuantSpec


def _build(config: Mapping) -> nn.Module:
    """The UNet of a latent model's configuration. Raises ValueError for one of other classes than ours."""
    return instantiate_from_config(config["model"]["params"]["unet_config"])


def _values(policy: QuantPolicy) -> tuple[QuantSpec, QuantSpec]:
    """The softmax of attention blocks is asymmetric whatever the activations are."""
    return policy.act, QuantSpec(policy.softmax_bits, always_zero=True)


def _cross_values(policy: QuantPolicy) -> tuple[QuantSpec, QuantSpec]:
    return policy.act, replace(policy.act, bits=policy.softmax_bits, always_zero=True)


ADAPTER = Adapter(
    family="ldm",
    build=_build,
    blocks=(ResBlock, AttentionBlock, BasicTransformerBlock),
    products={
        ScoreProduct: ProductKind(("q", "k"), as_activations, legacy_owner=False),
        ValueProduct: ProductKind(("v", "w"), _values, legacy_owner=False),
        CrossScoreProduct: ProductKind(("q", "k"), as_activations, legacy_owner=True),
        CrossValueProduct: ProductKind(("v", "w"), _cross_values, legacy_owner=True),
    },
    plain=(nn.GroupNorm, GroupNorm32, nn.LayerNorm, nn.Embedding),
    splits=partial(shortcut_splits, block=ResBlock, shortcut="skip_connection"),
    rehearsed=repeat_slices,
)
