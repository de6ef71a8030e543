"""Networks for tests of calibration: those of golden cases, and toys."""

from dataclasses import replace

import torch
from torch import nn

from qdiff.adapters import Adapter, adapter_for, adapter_of
from qdiff.calibration.data import CalibrationSet
from qdiff.observers import Observer
from qdiff.policy import QuantPolicy, QuantSpec
from qdiff.quant_model import QuantModel
from tests.golden_networks import golden_state_dict, load_case

POLICY = QuantPolicy(QuantSpec(4, per_channel=True, range_search="minmax"), QuantSpec(8, range_search="minmax"))
CASES = ["ddim_w4a8_split", "ldm_kl_w8a8", "ldm_class_w4a8", "sd_w4a8_split_sm16"]
SAMPLES, BATCH = 3, 2


def golden_job(name: str) -> tuple[QuantModel, CalibrationSet]:
    """A network with quantized activations, and its data: the golden inputs, some of them a little changed."""
    case = load_case(name)
    network = adapter_of(name.partition("_")[0].replace("sd", "ldm")).build(case.settings.config).eval()
    network.load_state_dict(golden_state_dict({key: x.shape for key, x in network.state_dict().items()}))
    model = QuantModel(network, POLICY, adapter_for(network)).eval()
    given = [case.tensors[name] for name in ("x", "t", "context") if name in case.tensors]
    rows = torch.arange(SAMPLES) % len(given[0])
    inputs = [x[rows] for x in given]
    inputs[0] = inputs[0] + 0.1 * torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(0))
    with model.observing(Observer):
        model(*inputs)
    return model, CalibrationSet(tuple(inputs))


def modules(model: QuantModel) -> list[nn.Module]:
    """What is reconstructed, in definition order."""
    return [block.module for block in model.blocks()]


def toy(network: nn.Module) -> QuantModel:
    """The network with its layers as blocks."""
    adapter = replace(adapter_of("ddim"), blocks=(), products={}, splits=lambda model: {})
    return QuantModel(network, POLICY, adapter).eval()


def toy_adapter(family: str = "toy") -> Adapter:
    return Adapter(family, nn.Sequential, (), {}, (), lambda model: {})


def linear_toy(policy: QuantPolicy, scale: float = 1.0) -> QuantModel:
    first, second = nn.Linear(4, 6), nn.Linear(6, 2)
    for i, parameter in enumerate([*first.parameters(), *second.parameters()]):
        parameter.data = scale * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
    return QuantModel(nn.Sequential(first, nn.Tanh(), second), policy, toy_adapter())
