import pytest
import torch

from qdiff.errors import UserError
from qdiff.evaluation.features import DIMENSION, FeatureNet, load_feature_net


def test_features_are_the_input_of_the_last_layers():
    torch.manual_seed(0)
    net = FeatureNet(categories=4, width=8).eval()
    images = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8)
    features = net.features(images, batch_size=2)
    assert (features.shape, features.dtype) == ((5, DIMENSION), torch.float64)
    logits = net(images / 127.5 - 1)
    torch.testing.assert_close(net.head(features.float()), logits)
    assert logits.std(0).min() > 1e-4, "images must not look all alike"


def test_larger_images_are_averaged_down():
    torch.manual_seed(0)
    net = FeatureNet(categories=4, width=8).eval()
    small = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    large = small.repeat_interleave(3, 2).repeat_interleave(3, 3)
    assert torch.equal(net.features(large), net.features(small))
    right = net(small / 127.5 - 1).argmax(1)
    assert net.recognised(large, right) == 1
    assert net.recognised(large, torch.stack([right[0], (right[1] + 1) % 4])) == 0.5


def test_a_file_of_another_network_is_refused(tmp_path):
    torch.save({"w": torch.zeros(3)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth"):
        load_feature_net(tmp_path / "w.pth")
