"""Conditioners, under their published names."""

from collections.abc import Mapping

from torch import Tensor, nn

from ldm.modules.encoders.clip import FrozenCLIPEmbedder

__all__ = ["ClassEmbedder", "FrozenCLIPEmbedder"]


BY_RULE = "by rule"
WITH_NULL_CLASS = 1001  # classes of the published ImageNet model with guidance: 1,000 and the null class


class ClassEmbedder(nn.Module):
    """A learned vector for each class, as a context of one token.

    Attributes:
        null_class: number of the null class, which guidance needs; None if there is none.
        classes: numbers of the real classes, ascending.

    Args:
        embed_dim: width of the context.
        n_classes: number of classes, including the null class.
        key: key of the class numbers in a batch.
        null_class: number of the null class, 0..n_classes - 1; None: there is none. Published configurations do not
            specify it; by default, it is the last of 1001 classes, and there is none with any other number of classes.

    Raises:
        ValueError: `null_class` is outside its range, or is the only class.
    """

    def __init__(
        self, embed_dim: int, n_classes: int = 1000, key: str = "class", null_class: int | str | None = BY_RULE
    ):
        super().__init__()
        if null_class == BY_RULE:
            null_class = n_classes - 1 if n_classes == WITH_NULL_CLASS else None
        if null_class is not None and (type(null_class) is not int or null_class not in range(n_classes)):
            raise ValueError(f"null_class is {null_class}, the classes are 0..{n_classes - 1}")
        self.key, self.null_class = key, null_class
        self.classes = [i for i in range(n_classes) if i != null_class]
        if not self.classes:
            raise ValueError("the only class is the null class")
        self.embedding = nn.Embedding(n_classes, embed_dim)

    @property
    def context_shape(self) -> tuple[int, int]:
        """(1, embed_dim), the shape of an embedded class."""
        return 1, self.embedding.embedding_dim

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Embed the classes `batch[key]`, numbers in 0..n_classes - 1 of shape (B,), int64 -> (B, 1, embed_dim)."""
        return self.embedding(batch[self.key][:, None])
