"""What a network must offer so that its features compare sets of images."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor


@dataclass(frozen=True)
class Identity:
    """Which feature network it is.

    Attributes:
        name: for titles, such as "Inception" or "emoji-classifier".
        sha256: of its weights, 64 hexadecimal digits.
        dimension: D, length of a feature vector.
        classes: K, number of logits.
        spatial: S, length of a vector of spatial features; None if the network has none.
        categories: names of the classes, K; empty if they are not known.
        standard: whether this is the Inception network with the weights by which FID, IS, sFID and KID are defined;
            only then the results have these names.
    """

    name: str
    sha256: str
    dimension: int
    classes: int
    spatial: int | None = None
    standard: bool = False
    categories: tuple[str, ...] = ()


class Features(NamedTuple):
    """What a feature network says about B images; on the CPU, in floating point.

    Attributes:
        vectors: (B, D).
        logits: (B, K), without the bias of the last layer in the case of Inception.
        spatial: (B, S), positions in row-major order, channels last; None if the network has none.
    """

    vectors: Tensor
    logits: Tensor
    spatial: Tensor | None = None


class FeatureNetwork(Protocol):
    """A network whose features compare sets of images."""

    @property
    def identity(self) -> Identity:
        """Which network it is."""

    def extract(self, images: Tensor) -> Features:
        """Compute the features of images (B, 3, H, W), uint8, of any size and on any device, without gradients."""
