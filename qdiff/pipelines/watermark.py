"""The invisible watermark that Stable Diffusion's own script adds to its images."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from qdiff.errors import UserError
from qdiff.files.images import to_uint8

MESSAGE = b"StableDiffusionV1"
METHOD = "dwtDct"
LEAST = 256 * 256  # pixels that the method needs at least


def watermark(channels: int, height: int, width: int) -> Callable[[Tensor], Tensor]:
    """Return a function that embeds `MESSAGE` in images, so that detectors of generated images recognise them.

    Args:
        channels, height, width: of the images, pixels.

    Returns:
        images (B, 3, H, W) in -1..1 -> marked images of the same shape and dtype, rounded to 256 levels.

    Raises:
        UserError: the package is not installed, or the images are grey or too small.
    """
    try:
        from imwatermark import WatermarkEncoder
    except ImportError as e:
        raise UserError(f"--watermark needs a package ({e}): pip install 'qdiff[watermark]'") from e
    if channels != 3:
        raise UserError("--watermark needs colour images, the model makes grey ones: leave it out")
    if height * width < LEAST:
        raise UserError(f"--watermark needs images of at least {LEAST} pixels: raise --H and --W, or leave it out")
    encoder = WatermarkEncoder()
    encoder.set_watermark("bytes", MESSAGE)

    def mark(images: Tensor) -> Tensor:
        channels_last = to_uint8(images).permute(0, 2, 3, 1).numpy()
        marked = [encoder.encode(image[..., ::-1].copy(), METHOD)[..., ::-1] for image in channels_last]  # it takes BGR
        pixels = torch.from_numpy(np.stack(marked).astype(np.float32)).permute(0, 3, 1, 2)
        # values that are not finite stay, so that they are reported
        return torch.where(images.isfinite(), (pixels / 127.5 - 1).to(images), images)

    return mark
