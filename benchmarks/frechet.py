"""Frechet distance of images to the training images of a bundled model, on the features of the bundled classifier."""

from pathlib import Path

from torch import Tensor

from qdiff.evaluation.features import load_feature_net
from qdiff.evaluation.metrics import Moments, frechet_distance
from qdiff.evaluation.statistics_file import read_statistics

FEATURES = Path("models/features/emoji32")
REFERENCES = {"pixel": "reference", "latent": "reference_all"}


def frechet(images: Tensor, model: str) -> float:
    """Return the distance, which is not FID; images are uint8 of shape (N, 3, H, W)."""
    net, moments = load_feature_net(FEATURES / "classifier.safetensors"), Moments()
    moments.update(net.extract(images).vectors)
    reference = read_statistics(FEATURES / f"{REFERENCES[model]}.safetensors", net.identity).vectors
    return frechet_distance(moments.statistics(), reference)
