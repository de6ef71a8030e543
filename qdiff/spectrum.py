"""The sensitivity spectrum: how far the sampled image moves when the prediction of the noise is off.

At a step of the sampler, S = |change of the image| / |error of the prediction|, for errors that are constant on blocks
of pixels: on single pixels, on the 16 blocks of a 4 x 4 grid, on the whole image. The squared error of the image is
then about

    sum over steps of S_pixel^2 |e|^2 + (S_grid^2 - S_pixel^2) |e averaged on the grid|^2
                                      + (S_whole^2 - S_grid^2) |e averaged over the image|^2

where an average stands at each of its pixels. An error of the mean colour in the first steps counts most by far.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

GRIDS = (None, 4, 1)  # blocks along an edge of the image; None for single pixels


def squares(error: Tensor) -> tuple[float, float, float]:
    """Return the parts of a squared error that `Spectrum.bands` weighs, each a sum over all pixels.

    Args:
        error: (B, C, H, W).

    Returns:
        the square of the error itself, of its averages on the grid, and of its averages over images.
    """
    parts = [error if blocks is None else F.adaptive_avg_pool2d(error, blocks) for blocks in GRIDS]
    whole, grid, pixel = (part.square().sum().item() * error.numel() / part.numel() for part in reversed(parts))
    return pixel, grid, whole


@dataclass(frozen=True)
class Spectrum:
    """A sensitivity spectrum, S >= 0, at some timesteps of a sampler.

    Args:
        timesteps: n of them, ascending.
        pixel, grid, whole: n values of S each, for errors on single pixels, on a 4 x 4 grid, and on the whole image.

    Raises:
        ValueError: not as many values as timesteps, or timesteps that do not ascend.
    """

    timesteps: tuple[float, ...]
    pixel: tuple[float, ...]
    grid: tuple[float, ...]
    whole: tuple[float, ...]

    def __post_init__(self):
        if not self.timesteps or {len(self.pixel), len(self.grid), len(self.whole)} != {len(self.timesteps)}:
            raise ValueError("a spectrum has a value of each kind at every timestep")
        if any(a >= b for a, b in pairwise(self.timesteps)):
            raise ValueError(f"the timesteps of a spectrum must ascend, not {self.timesteps}")

    @classmethod
    def uniform(cls) -> "Spectrum":
        """Return the spectrum that weighs all pixels at all timesteps alike."""
        return cls((0.0,), (1.0,), (1.0,), (1.0,))

    def softened(self) -> "Spectrum":
        """Return the spectrum with the square roots of its values, for fits to few samples.

        S^2 leaves a fifth of the samples, those of the first steps, to decide alone; of the others, errors may grow.
        """
        return Spectrum(self.timesteps, *(tuple(x**0.5 for x in s) for s in (self.pixel, self.grid, self.whole)))

    def bands(self, t: Tensor) -> Tensor:
        """Return the weights of the squared error's parts, (3, N): of all of it, of its grid's and of its image's mean.

        Args:
            t: timesteps, (N,). Between known ones, S is interpolated on a logarithmic scale; beyond, it is constant.
        """
        s2 = torch.stack([self._interpolated(values, t) for values in (self.pixel, self.grid, self.whole)]).square()
        finer = torch.stack([torch.zeros_like(s2[0]), s2[0], s2[:2].amax(0)])
        return (s2 - finer).clamp(min=0)

    def _interpolated(self, values: Sequence[float], t: Tensor) -> Tensor:
        known = torch.tensor(self.timesteps, dtype=torch.float64)
        logs = torch.tensor(values, dtype=torch.float64).clamp(min=1e-12).log()
        t = t.cpu().double()
        right = torch.searchsorted(known, t).clamp(1, max(1, len(known) - 1))
        if len(known) == 1:
            return logs.exp().expand(len(t)).float()
        start, end = known[right - 1], known[right]
        share = ((t - start) / (end - start)).clamp(0, 1)
        return torch.lerp(logs[right - 1], logs[right], share).exp().float()

    def to_dict(self) -> dict[str, list[float]]:
        """Return JSON values, for `from_dict`."""
        return {name: list(values) for name, values in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Spectrum":
        """Return the spectrum that `to_dict` described. Raises TypeError or ValueError for anything else."""
        return cls(**{name: tuple(map(float, numbers)) for name, numbers in values.items()})
