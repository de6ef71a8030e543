"""Pixel-space UNets of the DDPM and DDIM checkpoints."""

from dataclasses import replace

from torch import nn

from ddim.models.blocks import AttnBlock, QKMatMul, ResnetBlock, SMVMatMul
from ddim.models.diffusion import Model
from qdiff.adapters import Adapter, ProductKind
from qdiff.policy import QuantPolicy, QuantSpec


def _scores(policy: QuantPolicy) -> tuple[QuantSpec, QuantSpec]:
    return policy.act, policy.act


def _values(policy: QuantPolicy) -> tuple[QuantSpec, QuantSpec]:
    return policy.act, replace(policy.act, bits=policy.softmax_bits)


def _splits(model: nn.Module) -> dict[str, tuple[int, int]]:
    return {
        f"{path}.nin_shortcut": (block.nin_shortcut.in_channels - block.skip_channels, block.skip_channels)
        for path, block in model.named_modules()
        if isinstance(block, ResnetBlock) and block.skip_channels
    }


ADAPTER = Adapter(
    family="ddim",
    build=Model,
    blocks=(ResnetBlock, AttnBlock),
    products={
        QKMatMul: ProductKind(("q", "k"), _scores, legacy_owner=True),
        SMVMatMul: ProductKind(("v", "w"), _values, legacy_owner=True),
    },
    plain=(nn.GroupNorm,),
    splits=_splits,
)
