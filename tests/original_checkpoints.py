"""Calibrated checkpoints as the original writes them, made from the golden networks."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from omegaconf import DictConfig
from torch import Tensor

from ddim.models.diffusion import Model
from tests.golden_networks import GoldenCase, golden_alpha, golden_state_dict, load_case

W4A8_SPLIT, W8A8 = "ddim_w4a8_split", "ddim_w8a8_asym_sm16"

# Channels from below and from the skip connection, as the alphas of a checkpoint of this network show them.
SPLITS = {
    "model.up.0.block.0.nin_shortcut": (64, 32),
    "model.up.0.block.1.nin_shortcut": (32, 32),
    "model.up.1.block.0.nin_shortcut": (64, 64),
    "model.up.1.block.1.nin_shortcut": (64, 32),
}


class Original(NamedTuple):
    """A golden case, its full-precision weights, and its calibrated checkpoint."""

    case: GoldenCase
    weights: dict[str, Tensor]
    state: dict[str, Tensor]

    @property
    def config(self) -> DictConfig:
        return self.case.settings.config

    def network(self) -> Model:
        """A network of the case's shape with random weights, in evaluation mode."""
        return Model(self.config).eval()

    def flags(self, *, act: bool = True) -> dict:
        """The arguments of `load_quantized` that fit the checkpoint."""
        s = self.case.settings
        acts = {"act_bit": s.act_bit, "a_sym": s.a_sym, "sm_abit": s.sm_abit} if act else {}
        return {"weight_bit": s.weight_bit, "split": s.split} | acts


def original_checkpoint(name: str) -> Original:
    """The golden case `name` as the original would have saved it."""
    case = load_case(name)
    shapes = {key: x.shape for key, x in Model(case.settings.config).state_dict().items()}
    weights = golden_state_dict(shapes)
    return Original(case, weights, calibrated_state(weights, case, SPLITS))


def calibrated_state(
    weights: Mapping[str, Tensor], case: GoldenCase, splits: Mapping[str, tuple[int, int]]
) -> dict[str, Tensor]:
    """The calibrated checkpoint of a golden network: its weights, the stored scales, and alphas by their rule."""
    state = {f"model.{key}": x for key, x in weights.items()}
    scales = {key.removeprefix("scale."): x for key, x in case.tensors.items() if key.startswith("scale.")}
    for key, x in scales.items():
        state[key] = x
        quantizer, _, field = key.rpartition(".")
        layer, _, slot = quantizer.rpartition(".")
        if slot.startswith("weight_quantizer") and field == "delta":
            shape = list(state[f"{layer}.weight"].shape)
            if case.settings.split and layer in splits:
                shape[1] = splits[layer][slot == "weight_quantizer_0"]
            state[f"{quantizer}.alpha"] = golden_alpha(f"{quantizer}.alpha", shape)
    order = {key.rpartition(".")[0]: i for i, key in enumerate(state) if key not in scales}
    return dict(sorted(state.items(), key=lambda item: order.get(_layer(item[0]), len(order))))


def _layer(key: str) -> str:
    owner = key.rpartition(".")[0]
    return owner.rpartition(".")[0] if "_quantizer" in owner else owner


def relative_error(found: Tensor, expected: Tensor) -> float:
    """L2, in double precision."""
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


@torch.no_grad()
def output(model: torch.nn.Module, tensors: dict[str, Tensor]) -> Tensor:
    """The network on the inputs of a golden case."""
    return model(tensors["x"], tensors["t"])
