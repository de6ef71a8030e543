"""Checks of networks whose weights SQuant rounded."""

import torch
from torch import nn

from qdiff.quant_model import QuantModel
from qdiff.squant import squant


def assert_squant(model: QuantModel, network: nn.Module) -> None:
    """Check that every layer has the codes of `squant` for its weight in `network`, and that few are nearest."""
    nearest = 0
    for path, layer in model.layers().items():
        weight, quantizer = network.get_parameter(f"{path.removeprefix('model.')}.weight"), layer.weight_quantizer
        assert torch.equal(layer.codes, squant(weight.detach(), quantizer).to(torch.uint8)), path
        nearest += torch.equal(layer.codes, quantizer.codes(weight).to(torch.uint8))
    assert nearest <= 0.1 * len(model.layers())
