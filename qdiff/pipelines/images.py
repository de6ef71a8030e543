"""Images in memory, as a notebook shows them."""

from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from qdiff.sampling.images import check_finite, to_uint8

if TYPE_CHECKING:
    from qdiff.pipelines.pipeline import Pipeline


class Images(list[Image.Image]):
    """A list of PIL images.

    Args:
        tensor: their pixels, uint8 of shape (N, 1 or 3, H, W).
    """

    def __init__(self, tensor: Tensor):
        pixels = tensor.permute(0, 2, 3, 1).numpy()
        super().__init__(Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image) for image in pixels)
        self.tensor = tensor


def sample_in_memory(pipeline: "Pipeline", count: int, progress: bool) -> Images:
    """Sample images 0..count - 1; see `Pipeline.sample`."""
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    pixels = []
    with tqdm(total=count * pipeline.nfe, unit="call", desc="sampling", disable=not progress) as bar:
        for batch in torch.arange(count).split(pipeline.batch_size):
            indices = batch.tolist()
            for step in pipeline.steps(indices):
                bar.update(len(indices))
            images = pipeline.decode(step.x_prev)
            check_finite(images, indices)
            pixels.append(to_uint8(images))
    return Images(torch.cat(pixels))
