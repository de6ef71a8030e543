"""Images of quantized networks beside those in full precision, of the same seeds."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from qdiff.analysis.watching import check_full_precision, quantized_network
from qdiff.pipelines.pipeline import Pipeline

GREY = 128  # where there is no difference
GAINS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class ComparedImages:
    """Images of the same seeds; all tensors are uint8, (N, 1 or 3, H, W).

    Attributes:
        reference: in full precision.
        images: name of a quantized network -> its images.
    """

    reference: Tensor
    images: dict[str, Tensor]

    def difference(self, name: str) -> Tensor:
        """Return image - reference, int16 in -255..255."""
        return self.images[name].short() - self.reference.short()

    @property
    def gain(self) -> int:
        """Factor by which differences are enlarged, the same for all networks, so that they can be compared.

        The largest power of 2, up to 64, that keeps 99 % of the differences within 127 for the network that has the
        smallest ones; those of others may exceed it.
        """
        sizes = [self.difference(name).abs().flatten().float() for name in self.images]
        smallest = min(x.sort().values[int(0.99 * (len(x) - 1))].item() for x in sizes)
        return max(factor for factor in GAINS if factor == 1 or factor * smallest < GREY)

    def enlarged(self, name: str) -> Tensor:
        """Return grey + gain (image - reference), limited to 0..255."""
        return (GREY + self.gain * self.difference(name).int()).clamp(0, 255).to(torch.uint8)


def compared_images(pipeline: Pipeline, quantized: Mapping[str, Pipeline], images: int = 4) -> ComparedImages:
    """Sample the same seeds in full precision and with quantized networks.

    Args:
        pipeline: in full precision, loaded.
        quantized: name -> the same model and sampling with a quantized network; at least one.
        images: number of images, >= 1.

    Raises:
        TypeError, ValueError: `images` is not a number >= 1, one of the pipelines is not as above, or they differ in
            their sampling.
        UserError: an image is not finite.
    """
    check_full_precision(pipeline)
    if not quantized:
        raise ValueError("quantized is empty: give at least one pipeline to compare with")
    for other in quantized.values():
        quantized_network(other, pipeline)
    found = {name: other.sample(images).tensor for name, other in quantized.items()}
    return ComparedImages(pipeline.sample(images).tensor, found)
