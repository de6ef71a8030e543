import pytest
import torch.nn.functional as F

from qdiff.analysis.layer_errors import LayerErrors, layer_errors
from qdiff.analysis.trajectory import trajectory_errors


@pytest.fixture(scope="module")
def errors(pipelines) -> LayerErrors:
    return layer_errors(pipelines.fp, pipelines.w4, images=2)


def row(errors: LayerErrors, layer: str) -> list[float]:
    return errors.errors[errors.layers.index(layer)].tolist()


def test_the_error_of_the_first_layer_by_hand(pipelines, errors):
    """Its input is x_t, so its error is that of its own codes."""
    first, layer = pipelines.fp.network.conv_in, pipelines.w4.network.layers()["model.conv_in"]
    expected = []
    for step in pipelines.fp.steps([0, 1]):
        y = F.conv2d(step.x_t, first.weight, first.bias, padding=1).double()
        found = F.conv2d(layer.act_quantizer(step.x_t), layer.dequantized, layer.bias, padding=1).double()
        expected.append((((found - y) ** 2).sum() / (y**2).sum()).item())
    assert row(errors, "model.conv_in") == pytest.approx(expected, rel=1e-3)


def test_the_error_of_the_last_layer_is_that_of_the_prediction(pipelines, errors):
    expected = trajectory_errors(pipelines.fp, {"w4": pipelines.w4}, 2)["w4"]
    assert errors.timesteps == expected.timesteps == tuple(pipelines.fp.timesteps)
    assert row(errors, "model.conv_out") == pytest.approx(expected.eps, rel=1e-5)


def test_layers_come_in_the_order_of_their_calls_with_their_blocks(pipelines, errors):
    assert set(errors.layers) == pipelines.w4.network.layers().keys()
    assert errors.errors.shape == (len(errors.layers), 4) and (errors.errors > 0).all()
    assert errors.layers[-1] == "model.conv_out"
    assert errors.layers.index("model.up.1.block.0.conv1") < errors.layers.index("model.up.0.block.0.conv1")
    assert errors.blocks[errors.layers.index("model.up.0.block.0.conv1")] == "model.up.0.block.0"
    assert errors.blocks[errors.layers.index("model.conv_in")] == "model.conv_in"


def test_without_quantization_there_is_no_error(pipelines, unquantized):
    assert layer_errors(pipelines.fp, unquantized, 1).errors.max() < 1e-10  # sums of floats may differ


def test_more_bits_leave_less_error(pipelines, errors):
    finer = layer_errors(pipelines.fp, pipelines.w8, images=2)
    assert finer.layers == errors.layers
    assert finer.errors.log().mean() < errors.errors.log().mean() - 1


def test_networks_in_full_precision_are_no_quantized_ones(pipelines):
    with pytest.raises(ValueError, match="whose network is quantized"):
        layer_errors(pipelines.fp, pipelines.fp)
    with pytest.raises(ValueError, match="give one in full precision"):
        layer_errors(pipelines.w4, pipelines.w8)
