import pytest
import torch
from torch import Tensor

from qdiff.analysis.images import ComparedImages, compared_images


def pixels(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.uint8).reshape(1, 1, 1, -1)


def test_differences_are_enlarged_around_grey():
    compared = ComparedImages(pixels(10, 10, 200, 0), {"a": pixels(10, 13, 195, 20), "b": pixels(255, 0, 0, 0)})
    assert compared.difference("a").flatten().tolist() == [0, 3, -5, 20]
    assert compared.gain == 16  # the largest but one of the closer network stays within 127: 5 x 16
    assert compared.enlarged("a").flatten().tolist() == [128, 176, 48, 255]
    assert compared.enlarged("b").flatten().tolist() == [255, 0, 0, 128]


@pytest.mark.parametrize(
    ("difference", "gain"), [(0, 64), (1, 64), (2, 32), (15, 8), (16, 4), (63, 2), (64, 1), (255, 1)]
)
def test_the_gain_keeps_differences_below_the_limits(difference, gain):
    compared = ComparedImages(pixels(*[0] * 50), {"a": pixels(*[difference] * 50)})
    assert compared.gain == gain


def test_images_are_those_of_the_pipelines(pipelines):
    compared = compared_images(pipelines.fp, {"w4": pipelines.w4, "w8": pipelines.w8}, images=2)
    assert torch.equal(compared.reference, pipelines.fp.sample(2).tensor)
    assert list(compared.images) == ["w4", "w8"]
    assert torch.equal(compared.images["w4"], pipelines.w4.sample(2).tensor)


def test_wrong_pipelines_are_refused(pipelines):
    with pytest.raises(ValueError, match="at least one"):
        compared_images(pipelines.fp, {})
    with pytest.raises(ValueError, match="sample differently"):
        compared_images(pipelines.fp, {"w4": pipelines.w4.with_sampling(eta=0.0)})
