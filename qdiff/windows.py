"""What each output position of a layer sees of its input: the columns of im2col, without a matrix of all of them."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Windows:
    """Windows of an image, one for each position of a layer's output.

    Args:
        x: (N, C, H, W), padded. H is 1 for a row of positions, as of tokens, H and W are 1 for vectors.
        kernel, stride, dilation: along height and width.
    """

    x: Tensor
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the positions."""
        height, width = self._views().shape[2:4]
        return height, width

    def reshaped(self, shape: tuple[int, int]) -> "Windows":
        """Return the same windows with their positions as an image; only of layers that see one position at a time."""
        return self if shape == self.shape else Windows(self.x.reshape(*self.x.shape[:2], *shape))

    def _views(self) -> Tensor:
        """Return all windows, a view of shape (N, C, H, W, kh, kw)."""
        views = self.x
        for dim, size, stride, dilation in zip((2, 3), self.kernel, self.stride, self.dilation):
            views = views.unfold(dim, dilation * (size - 1) + 1, stride)[..., ::dilation]
        return views

    def at(self, samples: Tensor, positions: Tensor) -> Tensor:
        """Return the windows at some positions, numbered row by row, of some samples: (m, C, kh, kw)."""
        width = self.shape[1]
        return self._views()[samples, :, positions // width, positions % width]

    def means(self, blocks: int) -> Tensor:
        """Return the windows averaged over blocks x blocks parts of the positions, (N * blocks^2, C, kh, kw)."""
        rows, columns = (
            _averages(positions, blocks, *settings).to(self.x)
            for positions, *settings in zip(self.shape, self.x.shape[2:], self.kernel, self.stride, self.dilation)
        )
        means = rows @ (self.x @ columns.T)  # (N, C, kh * blocks, kw * blocks)
        means = means.unflatten(3, (-1, blocks)).unflatten(2, (-1, blocks))
        return means.permute(0, 3, 5, 1, 2, 4).flatten(0, 2)


def _averages(positions: int, blocks: int, size: int, kernel: int, stride: int, dilation: int) -> Tensor:
    """Return the matrix that averages what each place of a kernel sees over blocks, (kernel * blocks, size)."""
    means = F.adaptive_avg_pool1d(torch.eye(positions)[None], blocks)[0].T  # (blocks, positions)
    found = torch.zeros(kernel, blocks, size)
    for i in range(kernel):
        found[i, :, torch.arange(positions) * stride + i * dilation] = means
    return found.flatten(0, 1)
