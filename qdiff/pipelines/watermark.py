"""The invisible watermark that Stable Diffusion's own script puts into its pictures."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from qdiff.errors import UserError
from qdiff.files.images import to_uint8

MESSAGE = b"StableDiffusionV1"
METHOD = "dwtDct"
LEAST = 256 * 256  # pixels that the method needs


def watermark(channels: int, height: int, width: int) -> Callable[[Tensor], Tensor]:
    """What puts `MESSAGE` into pictures, so that detectors of generated pictures know them.

    Args:
        channels, height, width: of the pictures.

    Returns:
        pictures (B, 3, H, W) in -1..1 -> the same, on the grid of their 256 levels.

    Raises:
        UserError: the package is not there, or the pictures are grey or too small.
    """
    try:
        from imwatermark import WatermarkEncoder
    except ImportError as e:
        raise UserError(f"--watermark needs a package ({e}): pip install 'qdiff[watermark]'") from e
    if channels != 3:
        raise UserError("--watermark needs pictures in colour, the model makes grey ones: leave it out")
    if height * width < LEAST:
        raise UserError(f"--watermark needs pictures of at least {LEAST} pixels: raise --H and --W, or leave it out")
    encoder = WatermarkEncoder()
    encoder.set_watermark("bytes", MESSAGE)

    def mark(images: Tensor) -> Tensor:
        channels_last = to_uint8(images).permute(0, 2, 3, 1).numpy()
        marked = [encoder.encode(image[..., ::-1].copy(), METHOD)[..., ::-1] for image in channels_last]  # it takes BGR
        pixels = torch.from_numpy(np.stack(marked).astype(np.float32)).permute(0, 3, 1, 2)
        return torch.where(images.isfinite(), (pixels / 127.5 - 1).to(images), images)  # what overflowed stays seen

    return mark
