from dataclasses import replace

import numpy as np
import pytest
import torch

from qdiff.analysis import split
from qdiff.analysis.split import BINS, Halves, SplitShortcut, most_uneven, split_shortcuts
from qdiff.errors import UserError


@pytest.fixture(scope="module")
def shortcuts(pipelines) -> dict[str, SplitShortcut]:
    return split_shortcuts(pipelines.fp, images=2)


def test_the_layers_are_those_that_quantization_splits(pipelines, shortcuts):
    layers = {path: layer.split for path, layer in pipelines.w4.network.layers().items() if layer.split}
    assert len(layers) == 4
    assert {path: shortcut.channels for path, shortcut in shortcuts.items()} == layers


def check(halves: Halves, values: list[np.ndarray]) -> None:
    """Compare with numpy's histograms of the two halves."""
    edges = np.linspace(min(x.min() for x in values), max(x.max() for x in values), BINS + 1)
    np.testing.assert_allclose(halves.edges.numpy(), edges, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(halves.extremes.numpy(), [[x.min(), x.max()] for x in values])
    for shares, x in zip(halves.shares.numpy(), values):
        expected, _ = np.histogram(x, halves.edges.numpy())
        np.testing.assert_allclose(shares, expected / x.size, atol=1e-3)  # values on an edge
        assert shares.sum() == pytest.approx(1, abs=1e-5)
    widths = sorted(np.ptp(x) for x in values)
    assert halves.ratio == pytest.approx(widths[1] / widths[0], rel=1e-5)


def test_histograms_are_numpys(pipelines, shortcuts):
    path, shortcut = next(iter(shortcuts.items()))
    layer, seen = pipelines.fp.network.get_submodule(path.removeprefix("model.")), []
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].numpy()))
    list(pipelines.fp.steps([0, 1]))
    handle.remove()
    below = shortcut.channels[0]
    weight, inputs = layer.weight.detach().numpy(), np.concatenate(seen)
    check(shortcut.weights, [weight[:, :below], weight[:, below:]])
    check(shortcut.activations, [inputs[:, :below], inputs[:, below:]])


def test_the_ratio_of_the_ranges():
    def halves(*widths: float) -> Halves:
        return Halves(torch.arange(2.0), torch.ones(2, 1), torch.tensor([[0, width] for width in widths]))

    assert halves(2.0, 6.0).ratio == halves(6.0, 2.0).ratio == 3
    assert halves(0.0, 1.0).ratio == torch.inf
    one = SplitShortcut((4, 4), halves(1.0, 9.0), halves(1.0, 2.0))
    assert most_uneven({"a": one, "b": replace(one, activations=halves(6.0, 2.0)), "c": one}) == "b"


def test_a_network_without_split_shortcuts_is_refused(pipelines, monkeypatch):
    adapter = replace(split.adapter_for(pipelines.fp.network), splits=lambda network: {})
    monkeypatch.setattr(split, "adapter_for", lambda network: adapter)
    with pytest.raises(UserError, match=r"tiny\.yml' has no shortcut that concatenates two tensors"):
        split_shortcuts(pipelines.fp)
