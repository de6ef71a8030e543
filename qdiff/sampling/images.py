"""Seeds -> batches -> images: every image has its own noise, is written whole, and is made once."""

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from qdiff.errors import UserError
from qdiff.files.atomic import remove_leftovers
from qdiff.files.pictures import Shape, check_channels, check_picture, write_picture

logger = logging.getLogger(__name__)

Draw = Callable[[Sequence[int]], Iterable[Tensor]]
Decode = Callable[[Tensor], Tensor]
Watch = Callable[[Sequence[int], int, Tensor], None]


def to_uint8(images: Tensor) -> Tensor:
    """Pixels of images in [-1, 1]: round(255 clamp((x + 1) / 2, 0, 1)), ties to even; same shape, uint8 on the CPU."""
    return ((images.detach().float().cpu() + 1) / 2).clamp(0, 1).mul(255).round().to(torch.uint8)


def image_path(folder: Path, index: int) -> Path:
    """`folder`/000007.png for image 7."""
    return folder / f"{index:06d}.png"


def missing_images(indices: Iterable[int], folder: Path, shape: Shape) -> list[int]:
    """Numbers of the images that are still to be made.

    Raises:
        UserError: what stands in the place of an image is not a whole PNG of this shape, or no PNG can have it.
    """
    check_channels(shape[0])
    names, missing = set(os.listdir(folder)) if folder.exists() else set(), []
    for i in indices:
        path = image_path(folder, i)
        if path.name in names:
            check_picture(path, shape)
        else:
            missing.append(i)
    return missing


def sample_images(
    draw: Draw,
    indices: Iterable[int],
    folder: Path,
    shape: Shape,
    batch_size: int,
    *,
    decode: Decode = lambda x: x,
    metadata: Callable[[int], Mapping[str, str]] = lambda index: {},
    watch: Watch = lambda batch, step, x: None,
) -> int:
    """Make the images that `folder` lacks, as 000000.png, 000001.png, ...; each file appears whole or not at all.

    With the noise of `batch_noise`, image i is the same whatever the batch size, up to the rounding errors of a
    network that computes batches of another size in another order.

    Args:
        draw: numbers of B images -> their x after every sampling step, the last one the result; lazily, so that the
            progress bar moves and `watch` can let go of what it has seen.
        indices: numbers of the wanted images, >= 0.
        folder: in use by this process alone; made if it is missing.
        shape: (C, H, W) of a finished image; C is 1 (grey) or 3 (RGB).
        batch_size: images at a time, >= 1.
        decode: the last x -> images (B, *shape) in [-1, 1]; what lies outside is clamped.
        metadata: number of an image -> its PNG text chunks, key (1 to 79 Latin-1 characters) to any text.
        watch: is called with (numbers, step from 0, x) after every step; see `frame_writer`.

    Returns:
        how many images were made.

    Raises:
        UserError: as `missing_images`, before anything is drawn; or an image is not finite, then none of its batch is
            written.
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    indices = list(indices)
    missing = missing_images(indices, folder, shape)
    done = len(indices) - len(missing)
    logger.info("%s: %d of %d images exist, %d to make", folder, done, len(indices), len(missing))
    with tqdm(total=len(indices), initial=done, unit="image", disable=None) as bar:
        for start in range(0, len(missing), batch_size):
            batch = missing[start : start + batch_size]
            for step, x in enumerate(draw(batch)):
                bar.set_postfix_str(f"step {step + 1}")
                watch(batch, step, x)
            images = decode(x)
            _refuse_non_finite(images, batch)
            for i, pixels in zip(batch, to_uint8(images), strict=True):
                write_picture(image_path(folder, i), pixels, metadata(i))
                bar.update()
            logger.debug("images %d to %d written", batch[0], batch[-1])
    return len(missing)


def frame_writer(folder: Path, decode: Decode = lambda x: x) -> Watch:
    """A `watch` of `sample_images` that keeps the picture of every step: `folder`/000007/000000.png is image 7's first.

    Pictures of an image that is made again are replaced, for a run that was killed may have left some.

    Args:
        folder: in use by this process alone; made when the first picture is written.
        decode: x -> images (B, C, H, W) in [-1, 1], grey or RGB; what lies outside is clamped.
    """
    for sequence in folder.glob("*/"):
        remove_leftovers(sequence)

    def watch(batch: Sequence[int], step: int, x: Tensor) -> None:
        for i, pixels in zip(batch, to_uint8(decode(x)), strict=True):
            write_picture(image_path(folder / f"{i:06d}", step), pixels, {})

    return watch


def _refuse_non_finite(images: Tensor, batch: Sequence[int]) -> None:
    finite = images.isfinite().flatten(1).all(1).tolist()
    for i, whole in zip(batch, finite, strict=True):
        if not whole:
            raise UserError(
                f"image {i} is not finite (NaN or infinity): sample it in full precision and float32, which tells "
                "whether quantization, the precision or the weights make it so"
            )
