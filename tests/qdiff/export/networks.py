"""Small quantized networks of every family, with a call of each."""

import copy
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from ldm.modules.diffusionmodules.openaimodel import UNetModel
from qdiff.adapters import adapter_for
from qdiff.calls import Call
from qdiff.export.onnx import export_graph
from qdiff.observers import Observer
from qdiff.policy import QuantPolicy, QuantSpec
from qdiff.quant_model import QuantModel
from tests.golden_networks import golden_state_dict
from tests.qdiff.export.leaf import draw
from tests.tiny import tiny_network

if TYPE_CHECKING:
    import onnx_ir

W4A8 = QuantPolicy(QuantSpec(4, per_channel=True, range_search="max"), QuantSpec(8), split=True)
SYMMETRIC = QuantPolicy(QuantSpec(8, per_channel=True, range_search="max"), QuantSpec(8, symmetric=True), split=True)
SMALL = {
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": 1,
    "attention_resolutions": [2],
    "channel_mult": (1, 2),
    "num_head_channels": 16,
}


def latent(**parameters) -> UNetModel:
    network = UNetModel(**SMALL, **parameters).eval()
    network.load_state_dict(golden_state_dict({key: x.shape for key, x in network.state_dict().items()}))
    return network


def pixel_space() -> tuple[nn.Module, Call]:
    return tiny_network(), Call((draw(3, 3, 8, 8), torch.tensor([1, 5, 9])))


def class_conditional() -> tuple[nn.Module, Call]:
    network = latent(num_classes=10, use_scale_shift_norm=True, resblock_updown=True)
    return network, Call((draw(3, 4, 8, 8), torch.tensor([1, 500, 999])), {"y": torch.tensor([0, 3, 9])})


def text_to_image() -> tuple[nn.Module, Call]:
    network = latent(use_spatial_transformer=True, context_dim=24)
    return network, Call((draw(3, 4, 8, 8), torch.tensor([1, 500, 999]), draw(3, 5, 24, seed=1)))


NETWORKS = {"pixel-space": pixel_space, "class-conditional": class_conditional, "text-to-image": text_to_image}


def quantized(network: nn.Module, call: Call, policy: QuantPolicy = W4A8) -> QuantModel:
    model = QuantModel(network, policy, adapter_for(network))
    with model.observing(Observer):
        call(model)
    return model


class Exported(NamedTuple):
    """A network in full precision, simulated and exported."""

    fp: nn.Module
    model: QuantModel
    call: Call
    graph: "onnx_ir.Model"


@cache  # an export takes seconds
def exported(name: str, policy: QuantPolicy = W4A8) -> Exported:
    """Quantize and export one of `NETWORKS`; callers change copies only."""
    network, call = NETWORKS[name]()
    fp = copy.deepcopy(network)
    model = quantized(network, call, policy)
    return Exported(fp, model, call, export_graph(model, call))
