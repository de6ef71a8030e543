import pytest
import torch
from torch import nn

import qdiff
from qdiff.pipelines.eps_error import relative_eps_error
from qdiff.pipelines.pipeline import Pipeline
from tests.ldm.tiny import CLASSES, write_latent
from tests.tiny import write_tiny


@pytest.fixture(scope="module")
def pixel(tmp_path_factory) -> Pipeline:
    return qdiff.load_pipeline(write_tiny(tmp_path_factory.mktemp("pixel")), steps=4, device="cpu")


class Scaled(nn.Module):
    """A network whose prediction is off by a tenth."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, *args):
        return 1.1 * self.network(*args)


@pytest.mark.parametrize("sampler", ["ddim", "dpm"])
def test_a_prediction_that_is_off_by_a_tenth(sampler, pixel):
    """Its squared error is a hundredth at every step, because it gets the x_t of full precision."""
    full_precision = pixel.with_sampling(sampler)
    errors = relative_eps_error(full_precision.with_network(Scaled(pixel.network)), full_precision, range(3))
    assert errors == pytest.approx([0.01] * full_precision.nfe, rel=1e-3)
    assert relative_eps_error(full_precision, full_precision, range(3)) == [0] * full_precision.nfe


def test_guidance_is_included(tmp_path):
    write_latent(CLASSES, tmp_path)
    pipe = qdiff.load_pipeline(tmp_path, steps=4, device="cpu")
    guided = pipe.with_sampling(scale=3.0)
    errors = relative_eps_error(pipe, guided, [0, 1])
    for error, step in zip(errors, guided.steps([0, 1])):
        plain = pipe.model_for([0, 1])(step.x_t, torch.full((2,), step.t))
        assert error == pytest.approx(((plain - step.eps).square().sum() / step.eps.square().sum()).item())
    assert min(errors) > 1e-4
