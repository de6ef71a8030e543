import copy

import pytest
import torch

from qdiff.errors import UserError
from qdiff.evaluation.features import CATEGORIES, DIMENSION, FeatureNet, load_feature_net


def test_features_are_the_input_of_the_last_layers():
    torch.manual_seed(0)
    net = FeatureNet(categories=4, width=8).eval()
    images = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8)
    vectors, logits, spatial = net.extract(images)
    assert (vectors.shape, logits.shape, spatial) == ((5, DIMENSION), (5, 4), None)
    torch.testing.assert_close(logits, net(images / 127.5 - 1))
    torch.testing.assert_close(net.head(vectors), logits)
    assert logits.std(0).min() > 1e-4, "images must not look all alike"


def test_larger_images_are_averaged_down():
    torch.manual_seed(0)
    net = FeatureNet(categories=4, width=8).eval()
    small = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    large = small.repeat_interleave(3, 2).repeat_interleave(3, 3)
    assert torch.equal(net.extract(large).vectors, net.extract(small).vectors)


def test_the_digest_is_that_of_the_weights():
    torch.manual_seed(0)
    net, other = FeatureNet(categories=4, width=8), FeatureNet(categories=4, width=8)
    assert net.identity == copy.deepcopy(net).identity != other.identity
    assert (net.identity.dimension, net.identity.classes, net.identity.standard) == (DIMENSION, 4, False)


def test_the_categories_are_those_of_the_bundled_classifier():
    assert FeatureNet().identity.categories == CATEGORIES == tuple(sorted(CATEGORIES))
    assert FeatureNet(categories=4, width=8).identity.categories == (), "what they are called is not known"


def test_a_file_of_another_network_is_refused(tmp_path):
    torch.save({"w": torch.zeros(3)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth"):
        load_feature_net(tmp_path / "w.pth")
