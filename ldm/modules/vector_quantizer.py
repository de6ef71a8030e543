"""The codebook of a vector-quantized autoencoder."""

import torch
from torch import Tensor, nn


class VectorQuantizer(nn.Module):
    """Replaces the vector at each pixel by the nearest entry of a codebook (van den Oord et al. 2017, equation 2).

    Args:
        n_embed: number of entries.
        embed_dim: their width.
    """

    def __init__(self, n_embed: int, embed_dim: int):
        super().__init__()
        self.embedding = nn.Embedding(n_embed, embed_dim)
        with torch.no_grad():
            self.embedding.weight.div_(n_embed)  # close together, so that training reaches all of them

    def indices(self, z: Tensor) -> Tensor:
        """z: (B, embed_dim, H, W) -> index of the nearest entry for each pixel, (B, H, W), int64.

        One image at a time: the distances of its pixels to all entries are H * W * n_embed numbers.
        """
        codebook = self.embedding.weight
        squares = codebook.square().sum(dim=1)
        # |e - z|^2 less |z|^2, which does not change which entry is nearest
        nearest = [torch.addmm(squares, pixels.T, codebook.T, alpha=-2).argmin(dim=1) for pixels in z.flatten(2)]
        return torch.stack(nearest).unflatten(1, z.shape[2:])

    def forward(self, z: Tensor) -> Tensor:
        """z: (B, embed_dim, H, W) -> the nearest entries, the same shape; gradients reach the codebook, not `z`."""
        return self.embedding(self.indices(z)).movedim(3, 1)
