import math

import numpy as np
import pytest
import torch

import qdiff
from ldm.modules import slices
from qdiff.analysis.ranges import LEVELS, ActivationRanges, activation_ranges
from tests.ldm.tiny import CLASSES, write_latent


@pytest.fixture(scope="module")
def ranges(pipelines) -> ActivationRanges:
    return activation_ranges(pipelines.fp, images=2)


def test_the_input_and_the_prediction_have_their_quantiles(pipelines, ranges):
    """An independent computation: the input of the first layer is x_t."""
    steps = list(pipelines.fp.steps([0, 1]))
    assert ranges.timesteps == tuple(step.t for step in steps)
    for site, tensors in {"model.conv_in": [s.x_t for s in steps], "eps": [s.eps for s in steps]}.items():
        expected = np.stack([np.quantile(x.double().numpy(), LEVELS) for x in tensors])
        np.testing.assert_allclose(ranges.quantiles[site].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_the_input_of_a_layer_inside_has_its_quantiles(pipelines, ranges):
    network, seen = pipelines.fp.network, []
    handle = network.conv_out.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    list(pipelines.fp.steps([0, 1]))
    handle.remove()
    expected = np.stack([np.quantile(x.numpy(), LEVELS) for x in seen])
    np.testing.assert_allclose(ranges.quantiles["model.conv_out"].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_every_site_has_its_ranges(pipelines, ranges):
    assert set(ranges.quantiles) == {*pipelines.w4.network.layers(), *operands(pipelines.w4.network), "eps"}
    for quantiles in ranges.quantiles.values():
        assert quantiles.shape == (4, len(LEVELS)) and (quantiles.diff(dim=1) >= 0).all()
    for site, quantiles in ranges.quantiles.items():
        if site.endswith(".w"):  # attention weights
            assert (quantiles >= 0).all() and (quantiles <= 1).all()


def operands(network) -> list[str]:
    products = [site for site in network.sites() if site.name != "act_quantizer"]
    return [f"{site.path}.{site.name.removeprefix('act_quantizer_')}" for site in products]


def test_attention_in_slices_adds_up(tmp_path, monkeypatch):
    write_latent(CLASSES, tmp_path)
    pipe = qdiff.load_pipeline(tmp_path, device="cpu", steps=1, scale=2)
    whole = activation_ranges(pipe, 2)
    monkeypatch.setattr(slices, "SCORES", 1)
    sliced = activation_ranges(pipe, 2)
    assert sliced.quantiles.keys() == whole.quantiles.keys()
    for site, quantiles in whole.quantiles.items():
        torch.testing.assert_close(sliced.quantiles[site], quantiles, rtol=1e-3, atol=1e-4)


def test_the_sites_that_change_most_come_first():
    rows = {
        "same": (1, 1),
        "twice": (1, 2),
        "constant": (0, 0),
        "from zero": (0, 1),
        "also twice": (1, 2),
        "eps": (1, 9),
    }
    quantiles = {site: torch.tensor([[-w / 2, 0, 0, 0, 0, 0, w / 2] for w in widths]) for site, widths in rows.items()}
    ranges = ActivationRanges((10.0, 0.0), quantiles)
    found = [1.0, 2.0, 1.0, math.inf, 2.0, 9.0]
    assert [ranges.change(site) for site in rows] == found
    assert ranges.most_changing(2) == ["from zero", "twice"]
    assert ranges.most_changing(9) == ["from zero", "twice", "same", "constant"], "one of equal ones, without eps"


def test_wrong_arguments_are_refused(pipelines):
    with pytest.raises(ValueError, match="images"):
        activation_ranges(pipelines.fp, 0)
    with pytest.raises(ValueError, match="quantized"):
        activation_ranges(pipelines.w4)
