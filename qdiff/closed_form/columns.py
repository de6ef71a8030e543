"""Columns of a layer's inputs: which of them stand for the errors of its output."""

from dataclasses import dataclass, replace
from math import isqrt

import torch
from torch import Tensor

from qdiff.spectrum import GRIDS
from qdiff.windows import Windows


@dataclass(frozen=True)
class Columns:
    """Which columns of a layer's input are taken of a batch, and how much each of them counts.

    Args:
        shape: height and width of the positions of the layer's output, as an image.
        samples, positions: (m,), the columns of single positions.
        weights: (m,), of these.
        count: N, samples of the batch.
        means: for a number of blocks along an edge, the weights, (N,), of the columns averaged over each block.
    """

    shape: tuple[int, int]
    samples: Tensor
    positions: Tensor
    weights: Tensor
    count: int
    means: dict[int, Tensor]

    def of(self, windows: Windows) -> Tensor:
        """Return columns of a layer's input or output, (n, C, kh, kw): single positions, then blocks."""
        windows = windows.reshaped(self.shape)
        return torch.cat([windows.at(self.samples, self.positions), *map(windows.means, self.means)])

    def to(self, device: torch.device) -> "Columns":
        """Return the same columns on a device."""
        moved = {name: getattr(self, name).to(device) for name in ("samples", "positions", "weights")}
        return replace(self, **moved, means={blocks: w.to(device) for blocks, w in self.means.items()})

    @property
    def all_samples(self) -> Tensor:
        """The samples of the columns that `of` returns, (n,)."""
        every = torch.arange(self.count, device=self.samples.device)
        return torch.cat([self.samples, *(every.repeat_interleave(blocks**2) for blocks in self.means)])

    @property
    def all_weights(self) -> Tensor:
        """The weights of the columns that `of` returns, (n,)."""
        means = [w.repeat_interleave(blocks**2) for blocks, w in self.means.items()]
        return torch.cat([self.weights, *means])


def image_shape(positions: tuple[int, int], image: tuple[int, int]) -> tuple[int, int] | None:
    """Return height and width of a layer's output positions; None for a row that is no image, as of a text's tokens.

    Args:
        positions: `Windows.shape`; tokens of an image are a row.
        image: height and width of the network's input.
    """
    height, width = positions
    if height > 1 or width == 1:
        return positions
    factor = isqrt(image[0] * image[1] // width)
    if factor and factor**2 * width == image[0] * image[1] and not (image[0] % factor or image[1] % factor):
        return image[0] // factor, image[1] // factor
    return None


def choose_columns(
    bands: Tensor, share: float, positions: tuple[int, int], image: tuple[int, int], generator: torch.Generator
) -> Columns:
    """Draw columns of a batch: of single positions more where errors count more, and all averages over blocks.

    Args:
        bands: (3, N), weights of the error of each sample; see `Spectrum.bands`.
        share: positions to draw, per unit of the first of them.
        positions: `Windows.shape`.
        image: height and width of the network's input.
        generator: on the CPU.
    """
    shape = image_shape(positions, image)
    if shape is None:  # tokens that the whole image attends to
        bands, shape = torch.stack([bands.sum(0), *torch.zeros_like(bands[1:])]), positions
    if min(shape) < GRIDS[1]:
        bands = torch.stack([bands[0], torch.zeros_like(bands[1]), bands[1] + bands[2]])
    count = shape[0] * shape[1]
    drawn = (share * bands[0]).round().long().clamp(1, count)
    chosen = [torch.randperm(count, generator=generator)[:n] for n in drawn.tolist()]
    samples = torch.arange(len(drawn)).repeat_interleave(drawn)
    weights = (bands[0] * count / drawn)[samples]
    means = {blocks: band * count / blocks**2 for blocks, band in zip(GRIDS, bands) if blocks and band.any()}
    return Columns(shape, samples, torch.cat(chosen), weights, len(drawn), means)
