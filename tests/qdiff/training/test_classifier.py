from pathlib import Path

import numpy as np
import pytest
import torch

from qdiff.checkpoints.weights import load_weights
from qdiff.evaluation.features import DIMENSION, FeatureNet
from qdiff.evaluation.metrics import statistics
from qdiff.evaluation.statistics_file import read_statistics
from qdiff.training.classifier import accuracy, hold_out, train

BUNDLED = Path(__file__).parents[3] / "models" / "features" / "emoji32"


@pytest.fixture(scope="module")
def colours(tmp_path_factory) -> Path:
    """60 images, noisy red, green or blue, every name twice."""
    rng = np.random.default_rng(0)
    kind = np.arange(60) // 2 % 3
    images = rng.integers(0, 60, (60, 32, 32, 3))
    images[np.arange(60), :, :, kind] += 150
    path = tmp_path_factory.mktemp("colours") / "colours.npz"
    names = np.array([f"thing {i // 2}" for i in range(60)])
    np.savez(path, images=images.astype(np.uint8), names=names, category=np.array(["red", "green", "blue"])[kind])
    return path


def test_what_is_easy_is_learned_and_files_fit(colours, tmp_path):
    out = tmp_path / "out"
    assert train(colours, tmp_path / "run", out, category="red", steps=30, lr=5e-3, seed=0) == 1.0
    net = FeatureNet(categories=3).eval()
    load_weights(net, out / "classifier.safetensors")
    with np.load(colours) as archive:
        red = torch.tensor(archive["images"][archive["category"] == "red"]).permute(0, 3, 1, 2)
    both = [read_statistics(out / f"{name}.safetensors", net.identity) for name in ("reference", "reference_all")]
    found, expected = both[0].vectors, statistics(net.extract(red).vectors)
    assert [s.images.number for s in both] == [20, 60] and both[0].images.shape == (3, 32, 32)
    torch.testing.assert_close(found.mu, expected.mu)
    torch.testing.assert_close(found.sigma, expected.sigma)


def test_accuracy_is_the_share_of_right_answers():
    def answers(images):
        return torch.eye(3)[[0, 1, 2, 2]]

    assert accuracy(answers, torch.zeros(4, 3, 2, 2), torch.tensor([0, 1, 2, 0])) == 0.75


def test_held_out_names_are_in_no_training_image():
    names = [f"name {i % 40}" for i in range(100)]
    trained, tested = hold_out(names, seed=0)
    assert sorted(trained + tested) == list(range(100))
    assert {names[i] for i in trained}.isdisjoint(names[i] for i in tested)
    assert len({names[i] for i in tested}) == 4
    assert hold_out(names, seed=0) == (trained, tested) != hold_out(names, seed=1)


def test_the_bundled_classifier_tells_images_apart():
    net = FeatureNet().eval()
    assert sum(p.numel() for p in net.parameters()) < 300_000
    load_weights(net, BUNDLED / "classifier.safetensors")
    mu, sigma, n = read_statistics(BUNDLED / "reference.safetensors", net.identity).vectors
    assert (n, mu.shape, mu.dtype) == (338, (DIMENSION,), torch.float64)
    assert torch.equal(sigma, sigma.T)
    assert torch.linalg.eigvalsh(sigma).min() > 0
    noise = torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    distance = net.extract(noise).vectors.double().mean(0) - mu
    assert distance @ torch.linalg.solve(sigma, distance) > 5**2, "noise is five standard deviations from images"
