"""UNets of latent diffusion: LSUN, ImageNet, Stable Diffusion."""

from collections.abc import Mapping
from functools import partial

from torch import nn

from diffusion.blocks import ValueProduct
from ldm.modules.attention import BasicTransformerBlock, CrossScoreProduct, CrossValueProduct
from ldm.modules.diffusionmodules.blocks import AttentionBlock, ResBlock, ScoreProduct
from ldm.modules.diffusionmodules.util import GroupNorm32
from ldm.modules.slices import repeat_slices
from ldm.util import instantiate_from_config
from qdiff.adapters import Adapter, Contraction, ProductKind, from_zero, shortcut_splits
from qdiff.policy import QuantSpec


def _build(config: Mapping) -> nn.Module:
    """Build the UNet of a latent model's configuration. Raises ValueError for classes other than ours."""
    return instantiate_from_config(config["model"]["params"]["unet_config"])


def _asymmetric_softmax(spec: QuantSpec) -> QuantSpec:
    """Return the spec of an attention block's softmax: asymmetric, by the error search, whatever `spec` says."""
    return QuantSpec(spec.bits, always_zero=True)


ADAPTER = Adapter(
    family="ldm",
    build=_build,
    blocks=(ResBlock, AttentionBlock, BasicTransformerBlock),
    products={
        ScoreProduct: ProductKind(("q", "k"), contraction=Contraction("bci,bcj->bij")),
        ValueProduct: ProductKind(
            ("v", "w"), softmax="w", softmax_spec=_asymmetric_softmax, contraction=Contraction("bcj,bij->bci")
        ),
        CrossScoreProduct: ProductKind(
            ("q", "k"), legacy_owner=True, contraction=Contraction("bic,bjc->bij", scaled=True)
        ),
        CrossValueProduct: ProductKind(
            ("v", "w"),
            softmax="w",
            softmax_spec=from_zero,
            legacy_owner=True,
            contraction=Contraction("bjc,bij->bic"),
        ),
    },
    plain=(nn.GroupNorm, GroupNorm32, nn.LayerNorm, nn.Embedding),
    sensitive={
        "ends": ("model.input_blocks.0.0", "model.out.2"),
        "time": ("model.time_embed.*", "*.emb_layers.1"),
    },
    splits=partial(shortcut_splits, block=ResBlock, shortcut="skip_connection"),
    repeat_slices=repeat_slices,
)
