"""Networks to measure: of a pixel-space or latent configuration, with fixed random weights."""

from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from qdiff.adapters import adapter_for
from qdiff.config.networks import is_latent, load_network
from qdiff.observers import Observer
from qdiff.policy import QuantPolicy, QuantSpec
from qdiff.quant_model import QuantModel


def network(config: Path) -> nn.Module:
    """Build the network that predicts the noise, in full precision."""
    torch.manual_seed(0)
    return load_network(config)[1].eval()


def inputs(config: Path, batch: int) -> tuple[Tensor, ...]:
    """Draw inputs: noise x_t (batch, C, H, W), timesteps t (batch,), and a condition if the network takes one."""
    t = torch.linspace(0, 999, batch).long()
    found = OmegaConf.load(config)
    if not is_latent(config):
        return torch.randn(batch, found.data.channels, found.data.image_size, found.data.image_size), t
    params = found.model.params
    x = torch.randn(batch, params.channels, params.image_size, params.image_size)
    if not isinstance(params.cond_stage_config, DictConfig):
        return x, t
    condition = params.cond_stage_config
    tokens = condition.get("params", {}).get("max_length", 77) if "CLIP" in condition.target else 1
    return x, t, torch.randn(batch, tokens, params.unet_config.params.context_dim)


def quantized(config: Path, act: bool, batch: int, split: bool = True) -> QuantModel:
    """Build the network in W4 or, with `act`, W4A8, with activation ranges of random inputs."""
    policy = QuantPolicy(QuantSpec(4, per_channel=True, range_search="minmax"), QuantSpec(8) if act else None, 8, split)
    fp = network(config)
    model = QuantModel(fp, policy, adapter_for(fp)).eval()
    if act:
        with model.observing(Observer):
            model(*inputs(config, batch))
    return model
