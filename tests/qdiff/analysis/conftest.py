"""Tiny pipelines in full precision and quantized."""

import copy
from collections.abc import Iterator
from typing import NamedTuple

import pytest

import qdiff
from qdiff.adapters import adapter_for
from qdiff.pipelines.pipeline import Pipeline
from qdiff.policy import QuantPolicy
from qdiff.quant_model import QuantModel
from tests.tiny import write_tiny


class Pipelines(NamedTuple):
    fp: Pipeline
    w4: Pipeline
    w8: Pipeline


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory) -> Pipelines:
    """A pixel-space model of 4 steps with noise, and two quantized ones."""
    fp = qdiff.load_pipeline(write_tiny(tmp_path_factory.mktemp("tiny")), device="cpu", steps=4, eta=0.5, seed=2)
    settings = {"method": "linear", "act_bits": 8, "split": True, "timesteps": 2, "samples": 2}
    return Pipelines(fp, *(qdiff.quantize(fp, weight_bits=bits, **settings) for bits in (4, 8)))


@pytest.fixture
def unquantized(pipelines) -> Iterator[Pipeline]:
    """A pipeline with a quantized network, all of whose quantizers are off."""
    network = copy.deepcopy(pipelines.fp.network)
    model = QuantModel(network, QuantPolicy(), adapter_for(network))
    with model.full_precision():
        yield pipelines.fp.with_network(model)
