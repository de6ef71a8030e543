"""LPIPS with random AlexNet weights, because torchvision's cannot be had here."""

from pathlib import Path

import pytest
import torch
import torchvision
from torchmetrics.functional.image import learned_perceptual_image_patch_similarity
from torchmetrics.functional.image.lpips import _LPIPS

from qdiff.errors import UserError
from qdiff.evaluation import lpips
from qdiff.evaluation.lpips import FILE, cached_alexnet, lpips_to_fp
from qdiff.evaluation.measures import Batch
from qdiff.files.digest import file_digest
from tests.qdiff.evaluation.networks import drawn_images

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def alexnet() -> torch.nn.Module:
    torch.manual_seed(0)
    return torchvision.models.alexnet(weights=None).eval()


@pytest.fixture
def weights(alexnet, tmp_path, monkeypatch) -> Path:
    """The convolutions, which are all that LPIPS takes, under the name and the digest that it expects."""
    path = tmp_path / "hub" / "checkpoints" / FILE
    path.parent.mkdir(parents=True)
    state = {key: x for key, x in alexnet.state_dict().items() if key.startswith("features.")}
    torch.save(state, path)
    monkeypatch.setattr(lpips, "SHA256", file_digest(path)[:8])
    return path


def test_it_is_torchmetrics_with_these_weights(alexnet, weights, monkeypatch):
    images, reference = drawn_images(5, 0, size=32), drawn_images(5, 1, size=32)
    measure = lpips_to_fp(weights, CPU)
    for part in zip(images.split(2), reference.split(2)):
        measure.update(Batch(*part))
    monkeypatch.setattr(torchvision.models, "alexnet", lambda weights: alexnet)  # instead of a download
    with torch.no_grad():
        pair = [x / 127.5 - 1 for x in (images, reference)]
        net = _LPIPS(net="alex")
        expected = [net(a[None], b[None]).item() for a, b in zip(*pair)]
        together = learned_perceptual_image_patch_similarity(*pair, net_type="alex").item()
    (found,) = measure.compute()
    assert found == pytest.approx(sum(expected) / 5, rel=1e-4) == pytest.approx(together, rel=1e-4)
    assert min(expected) > 1e-4


def test_equal_images_have_no_distance_and_grey_ones_are_compared(weights):
    grey = drawn_images(2, 0, size=32)[:, :1]
    measure = lpips_to_fp(weights, CPU)
    measure.update(Batch(grey, grey))
    assert measure.compute() == (0,)


def test_weights_that_torchvision_downloaded_are_found(weights, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    assert cached_alexnet() == weights
    weights.unlink()
    assert cached_alexnet() is None


def test_other_weights_are_refused(weights, monkeypatch):
    monkeypatch.setattr(lpips, "SHA256", "7be5be79")
    with pytest.raises(UserError, match=r"is not torchvision's alexnet-owt-7be5be79\.pth: get https://.* --lpips FILE"):
        lpips_to_fp(weights, CPU)
