"""Conditioners by their published names."""

from collections.abc import Mapping

from torch import Tensor, nn

from ldm.modules.encoders.clip import FrozenCLIPEmbedder

__all__ = ["ClassEmbedder", "FrozenCLIPEmbedder"]


BY_RULE = "by rule"
WITH_NULL_CLASS = 1001  # rows of the published ImageNet model with guidance: 1,000 classes and one for none


class ClassEmbedder(nn.Module):
    """A learned vector for each class, as a context of one token.

    Attributes:
        null_class: number of the class that stands for none, which guidance needs; None if all are real.
        classes: numbers of the real ones, ascending.

    Args:
        embed_dim: width of the context.
        n_classes: number of classes, the null class included.
        key: where a batch keeps its class numbers.
        null_class: which class stands for none, 0..n_classes - 1; None for none of them. Published configurations do
            not say. The rule for these: of 1001 classes it is the last, of any other number all are real.

    Raises:
        ValueError: `null_class` is none of the classes, or the only one.
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
            raise ValueError("the only class stands for none")
        self.embedding = nn.Embedding(n_classes, embed_dim)

    @property
    def context_shape(self) -> tuple[int, int]:
        """What a class becomes: (1, embed_dim)."""
        return 1, self.embedding.embedding_dim

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """`batch[key]`: class numbers in 0..n_classes - 1, shape (B,) -> (B, 1, embed_dim)."""
        return self.embedding(batch[self.key][:, None])
