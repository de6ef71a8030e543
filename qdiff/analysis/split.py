"""What a shortcut layer sees and multiplies in each of the two halves that split quantization separates.

Q-Diffusion, Li et al. 2023, section 3.3: the input concatenates the layer below and a skip connection, whose values may
differ so much in range that one step size fits neither.
"""

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.checks import whole
from qdiff.adapters import adapter_for
from qdiff.analysis.watching import check_full_precision, layers, summary_of, watching
from qdiff.errors import UserError
from qdiff.functional import at_least_float32
from qdiff.pipelines.pipeline import Pipeline
from qdiff.ranges import RowSummary

BINS = 80


@dataclass(frozen=True)
class Halves:
    """Histograms of the values in two halves of a tensor's channels, with common bins.

    Attributes:
        edges: of the bins, from the least to the largest value of both halves, (81,), float32.
        shares: share of each half's values that lies in each bin, (2, 80), float32; a row adds up to 1.
        extremes: minimum and maximum of each half, (2, 2), float32.
    """

    edges: Tensor
    shares: Tensor
    extremes: Tensor

    @property
    def ratio(self) -> float:
        """Width of the wider half's range, from minimum to maximum, divided by that of the other; >= 1."""
        narrow, wide = sorted((self.extremes[:, 1] - self.extremes[:, 0]).tolist())
        return wide / narrow if narrow else torch.inf


@dataclass(frozen=True)
class SplitShortcut:
    """A shortcut layer that split quantization treats in two halves.

    Attributes:
        channels: input channels of the halves: from the layer below, and from the skip connection.
        weights: of the layer.
        activations: its input, at all timesteps.
    """

    channels: tuple[int, int]
    weights: Halves
    activations: Halves


@torch.no_grad()
def split_shortcuts(pipeline: Pipeline, images: int = 4) -> dict[str, SplitShortcut]:
    """Measure weights and inputs of every split shortcut, on trajectories of full precision.

    Histograms of inputs take up to 65,536 evenly spaced values of each half in each network call; extremes are exact.

    Args:
        pipeline: in full precision, loaded.
        images: the first ones of its seed, >= 1, sampled in one batch.

    Returns:
        path, as in a quantized network -> the layer.

    Raises:
        TypeError, ValueError: `images` is not a number >= 1, or the pipeline is quantized or has no weights.
        UserError: the network has no shortcut to split.
    """
    splits = split_channels(pipeline)
    modules = {path: module for path, module in layers(pipeline.network).items() if path in splits}
    seen: dict[str, list[list[RowSummary]]] = defaultdict(lambda: [[], []])

    def see(path: str, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        for parts, half in zip(seen[path], inputs[0].split(splits[path], dim=1)):
            parts.append(summary_of(half))

    with watching(modules, see):
        for _ in pipeline.steps(range(whole("images", images, 1))):
            pass
    measured = {}
    for path, channels in splits.items():
        weights = modules[path].get_parameter("weight").split(channels, dim=1)
        rows = [RowSummary(x.amin()[None], x.amax()[None], x.reshape(1, -1)) for x in map(_on_cpu, weights)]
        measured[path] = SplitShortcut(channels, _histograms([[row] for row in rows]), _histograms(seen[path]))
    return measured


def split_channels(pipeline: Pipeline) -> dict[str, tuple[int, int]]:
    """Return the path of every split shortcut, and the input channels of its halves. Raises as `split_shortcuts`."""
    check_full_precision(pipeline)
    splits = adapter_for(pipeline.network).splits(pipeline.network)
    if not splits:
        raise UserError(
            f"the network of '{pipeline.source}' has no shortcut that concatenates two tensors: use another"
        )
    return {f"model.{path}": channels for path, channels in splits.items()}


def most_uneven(shortcuts: dict[str, SplitShortcut]) -> str:
    """Return the path of the shortcut whose two halves differ most in the range of their activations."""
    return max(shortcuts, key=lambda path: shortcuts[path].activations.ratio)


def _on_cpu(x: Tensor) -> Tensor:
    return at_least_float32(x).cpu()


def _histograms(halves: list[list[RowSummary]]) -> Halves:
    """Count the values of two halves, each in parts of one row."""
    low = torch.stack([torch.cat([part.low for part in parts]).amin() for parts in halves])
    high = torch.stack([torch.cat([part.high for part in parts]).amax() for parts in halves])
    edges = torch.linspace(low.min().item(), high.max().item(), BINS + 1)
    shares = []
    for parts in halves:
        values = torch.cat([part.values[0] for part in parts]).float()
        shares.append(torch.histogram(values, edges).hist / len(values))
    return Halves(edges, torch.stack(shares), torch.stack([low, high], dim=1).float())
