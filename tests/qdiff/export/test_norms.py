"""GroupNorm in both engines against PyTorch's, and which passes over its input are left."""

import pytest
import torch
from torch import nn

from qdiff.adapters import Adapter
from qdiff.calls import Call
from qdiff.export.onnx import export_graph
from qdiff.policy import QuantPolicy
from qdiff.quant_model import QuantModel
from tests.qdiff.export.leaf import assert_agree, draw

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

OFFSET = 3.0  # of the input, in relation to its deviation: variances are differences of squares


class Normalised(nn.Module):
    """A convolution of what GroupNorm makes of its inputs, which a subclass puts together."""

    def __init__(self, channels=64, last=nn.Conv2d, groups=32):
        super().__init__()
        self.norm, self.last = nn.GroupNorm(groups, channels, eps=1e-6), last(channels, 3, 1)
        with torch.no_grad():
            self.norm.weight.copy_(draw(channels))
            self.norm.bias.copy_(draw(channels, seed=1))

    def forward(self, *inputs):
        return self.last(self.norm(self.joined(*inputs)))

    def joined(self, x):
        return x


class Added(Normalised):
    """x plus a number for each sample and channel."""

    def joined(self, x, e):
        return x + e[:, :, None, None]


class Joined(Normalised):
    """Two tensors, whose boundary may be within a group, the first one with a number added."""

    def joined(self, x, e, z):
        return torch.cat([e[:, :, None, None] + x, z], dim=1)


class Twice(Normalised):
    """A tensor that is normalised by itself and as part of another, as skip connections are."""

    def joined(self, x):
        return torch.cat([self.norm(torch.cat([x, x], dim=1)), x], dim=1)[:, : 2 * x.shape[1]]


def quantized(network):
    return QuantModel(network.eval(), QuantPolicy(), Adapter(family="leaf", plain=(nn.GroupNorm,)))


def moved(*shape, seed=0):
    return draw(*shape, seed=seed) + OFFSET


CASES = {
    "an image": (Normalised, {}, [(2, 64, 5, 5)]),
    "a sequence": (Normalised, {"last": nn.Conv1d}, [(2, 64, 9)]),
    "a number added": (Added, {}, [(3, 64, 5, 5), (3, 64)]),
    "parts of whole groups": (Joined, {}, [(2, 32, 5, 5), (2, 32), (2, 32, 5, 5)]),
    "a group of both parts": (Joined, {"channels": 60, "groups": 5}, [(2, 20, 5, 5), (2, 20), (2, 40, 5, 5)]),
}


@pytest.mark.parametrize("name", CASES)
def test_normalisation(name):
    kind, settings, shapes = CASES[name]
    inputs = [moved(*shape, seed=i) for i, shape in enumerate(shapes)]
    assert_agree(quantized(kind(**settings)), *inputs, tolerance=1e-5)


def operators(kind, *shapes, **settings):
    inputs = tuple(draw(*shape) for shape in shapes)
    return export_graph(quantized(kind(**settings)), Call(inputs)).graph


def test_a_number_for_each_channel_is_not_added_to_the_pixels():
    graph = operators(Added, (2, 64, 5, 5), (2, 64))
    x = graph.inputs[0]
    assert sorted(reader.op_type for reader, _ in x.uses()) == ["Mul", "ReduceL2", "ReduceMean"]


def test_moments_of_a_tensor_are_computed_once():
    graph = operators(Twice, (2, 32, 5, 5), channels=64)
    readers = [reader.op_type for reader, _ in graph.inputs[0].uses()]
    assert readers.count("ReduceMean") == readers.count("ReduceL2") == 1


def test_no_sum_is_left_that_nothing_reads():
    graph = operators(Joined, (2, 32, 5, 5), (2, 32), (2, 32, 5, 5))
    assert all(y.uses() or y.is_graph_output() for node in graph for y in node.outputs)
