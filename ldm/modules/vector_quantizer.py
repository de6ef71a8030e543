"""The codebook of a vector-quantized autoencoder."""

import torch
from torch import Tensor, nn


class VectorQuantizer(nn.Module):
    """Replace the vector at each pixel by the nearest entry of a codebook (van den Oord et al. 2017, equation 2).

    Args:
        n_embed: number of entries.
        embed_dim: width of an entry.
    """

    def __init__(self, n_embed: int, embed_dim: int):
        super().__init__()
        self.embedding = nn.Embedding(n_embed, embed_dim)
        with torch.no_grad():
            self.embedding.weight.div_(n_embed)  # close together, so that none is left unused in training

    def indices(self, z: Tensor) -> Tensor:
        """Return the index of the nearest entry for each pixel: z, (B, embed_dim, H, W) -> (B, H, W), int64.

        Images are processed one at a time, because the distances of all pixels to all entries are H W n_embed numbers.
        """
        codebook = self.embedding.weight
        squares = codebook.square().sum(dim=1)
        # |e - z|^2 - |z|^2, which has its minimum at the same entry
        nearest = [torch.addmm(squares, pixels.T, codebook.T, alpha=-2).argmin(dim=1) for pixels in z.flatten(2)]
        return torch.stack(nearest).unflatten(1, z.shape[2:])

    def forward(self, z: Tensor) -> Tensor:
        """Return the nearest entries of z, (B, embed_dim, H, W), in its shape; only the codebook gets gradients."""
        return self.embedding(self.indices(z)).movedim(3, 1)
