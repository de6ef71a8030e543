"""Conditioners by their published names."""

from collections.abc import Mapping

from torch import Tensor, nn

from ldm.modules.encoders.clip import FrozenCLIPEmbedder

__all__ = ["ClassEmbedder", "FrozenCLIPEmbedder"]


class ClassEmbedder(nn.Module):
    """A learned vector for each class, as a context of one token.

    Args:
        embed_dim: width of the context.
        n_classes: number of classes, one for "no class" included where guidance uses it.
        key: where a batch keeps its class numbers.
    """

    def __init__(self, embed_dim: int, n_classes: int = 1000, key: str = "class"):
        super().__init__()
        self.key = key
        self.embedding = nn.Embedding(n_classes, embed_dim)

    @property
    def context_shape(self) -> tuple[int, int]:
        """What a class becomes: (1, embed_dim)."""
        return 1, self.embedding.embedding_dim

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """`batch[key]`: class numbers in 0..n_classes - 1, shape (B,) -> (B, 1, embed_dim)."""
        return self.embedding(batch[self.key][:, None])
