"""What a PNG says about how it was made."""

from importlib.metadata import PackageNotFoundError, version

import pytest

from qdiff.adapters.ddim.samplers import DDIM
from qdiff.pipelines.pixel import PixelPipeline
from qdiff.pipelines.png_text import png_text
from qdiff.pipelines.settings import PixelModel, Sampling
from tests.tiny import write_tiny


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
