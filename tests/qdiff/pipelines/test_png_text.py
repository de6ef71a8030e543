"""What a PNG says about how it was made."""

from importlib.metadata import PackageNotFoundError, version

import pytest

from qdiff.adapters.ddim.samplers import DDIM
from qdiff.pipelines.pixel import PixelPipeline
from qdiff.pipelines.png_text import bits_of, png_text
from qdiff.pipelines.settings import PixelModel, Sampling
from qdiff.policy import QuantPolicy, QuantSpec
from tests.tiny import write_tiny


def policy(bits: int, act_bits: int | None = None, softmax_bits: int = 8, split: bool = False) -> QuantPolicy:
    act = None if act_bits is None else QuantSpec(act_bits)
    return QuantPolicy(QuantSpec(bits, per_channel=True, range_search="minmax"), act, softmax_bits, split)


def test_bits_of_a_policy():
    assert bits_of(policy(4)) == "W4"
    assert bits_of(policy(4, 6)) == "W4A6, A8 after softmax"
    assert bits_of(policy(8, 8, 16, split=True)) == "W8A8, A16 after softmax, split"


@pytest.fixture
def pipeline(tmp_path) -> PixelPipeline:
    return PixelPipeline(PixelModel(write_tiny(tmp_path), device="cpu"), Sampling(DDIM(5, eta=0.5), seed=7))


def test_texts(pipeline):
    assert png_text(pipeline, [3, 4]) == {
        "seed": "7, image 3, 4",
        "sampler": "DDIM(steps=5, skip_type=uniform, eta=0.5), 5 network calls",
        "bits": "not quantized",
        "precision": "full",
        "Software": f"qdiff {version('qdiff')}",
    }


def test_software_without_an_installation(monkeypatch, pipeline):
    def missing(name: str):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("qdiff.files.version.version", missing)
    assert png_text(pipeline, [3])["Software"] == "qdiff"
