"""Means over the pixels of two predictions and of their products, sample by sample: all that a fit has to know."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

GRID = 4  # cells along an edge, at the most


@dataclass(frozen=True)
class Moments:
    """Moments of a prediction y that is to become a target x, for each channel.

    Args:
        values: float64 of shape (..., C, 8): means over the pixels of x, y, x^2, y^2 and xy, and over the cells of a
            grid of a^2, b^2 and ab, where a and b are the means of x and y in a cell.
        pixels, cells: their numbers.
    """

    values: Tensor
    pixels: int
    cells: int

    @classmethod
    def of(cls, target: Tensor, prediction: Tensor) -> "Moments":
        """Return the moments of each sample, (B, C, 8); both arguments have the shape (B, C, H, W)."""
        x, y = target.cpu().double(), prediction.cpu().double()
        a, b = (_on_grid(z) for z in (x, y))
        products = (x, y, x * x, y * y, x * y, a * a, b * b, a * b)
        return cls(torch.stack([z.mean((-2, -1)) for z in products], -1), x[0, 0].numel(), a[0, 0].numel())

    @property
    def x(self) -> Tensor:
        return self.values[..., 0]

    @property
    def y(self) -> Tensor:
        return self.values[..., 1]

    @property
    def xx(self) -> Tensor:
        return self.values[..., 2]

    @property
    def yy(self) -> Tensor:
        return self.values[..., 3]

    @property
    def xy(self) -> Tensor:
        return self.values[..., 4]

    def like(self, values: Tensor) -> "Moments":
        """Return other values with the same numbers of pixels and cells."""
        return Moments(values, self.pixels, self.cells)

    def over_channels(self) -> "Moments":
        """Return the moments of all channels together, (..., 8)."""
        return self.like(self.values.mean(-2))

    def error(self, scale: Tensor, shift: Tensor) -> Tensor:
        """Return the mean squared error of scale y + shift, over the channels.

        Args:
            scale, shift: of each channel, broadcast to (..., C).
        """
        return self._errors(scale, shift, self.values[..., 2:5]).mean(-1)

    def bands(self, scale: Tensor, shift: Tensor) -> Tensor:
        """Return the parts of this error, (..., 3): within cells, between the cells of an image, of the whole image.

        Of white noise, `white` tells the parts.
        """
        pixel = self._errors(scale, shift, self.values[..., 2:5]).mean(-1)
        cell = self._errors(scale, shift, self.values[..., 5:8]).mean(-1)
        whole = (scale * self.y + shift - self.x).square().mean(-1)
        return torch.stack([pixel - cell, cell - whole, whole], -1)

    @property
    def white(self) -> Tensor:
        """The three parts of the variance of white noise, which sum to 1."""
        parts = [self.pixels - self.cells, self.cells - 1, 1]
        return torch.tensor(parts, dtype=torch.float64) / self.pixels

    def _errors(self, scale: Tensor, shift: Tensor, products: Tensor) -> Tensor:
        xx, yy, xy = products.unbind(-1)
        return scale**2 * yy + 2 * scale * (shift * self.y - xy) + shift**2 - 2 * shift * self.x + xx


def _on_grid(x: Tensor) -> Tensor:
    """Return the means of (B, C, H, W) in the cells of a grid that divides it evenly."""
    height, width = (next(n for n in range(GRID, 0, -1) if size % n == 0) for size in x.shape[-2:])
    return F.adaptive_avg_pool2d(x, (height, width))


@dataclass
class Mean:
    """A mean over samples and its standard error, from chunks of them; any shape for each sample."""

    count: int = 0
    total: Tensor | float = 0.0
    squares: Tensor | float = 0.0
    _origin: Tensor | None = field(default=None, repr=False)

    def add(self, chunk: Tensor) -> None:
        """Add samples, (B, ...)."""
        if self._origin is None:
            self._origin = chunk[0]  # sums of squares around a value of the right size lose no digits
        self.count += len(chunk)
        self.total = self.total + (chunk - self._origin).sum(0)
        self.squares = self.squares + (chunk - self._origin).square().sum(0)

    @property
    def mean(self) -> Tensor:
        """The mean, (...)."""
        assert self._origin is not None, "no samples"
        return self._origin + self.total / self.count

    @property
    def error(self) -> Tensor:
        """Its standard error, (...); samples are independent."""
        variance = (self.squares - self.total**2 / self.count) / max(1, self.count - 1)
        return (torch.as_tensor(variance).clamp(min=0) / self.count).sqrt()


def mean_of(chunks: Iterable[Tensor]) -> Mean:
    """Return the mean of chunks of samples, (B, ...) each."""
    found = Mean()
    for chunk in chunks:
        found.add(chunk)
    return found
