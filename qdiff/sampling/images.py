"""The sampling loop: it makes the images that a folder lacks, batch by batch, and writes each once."""

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from qdiff.errors import UserError
from qdiff.files.atomic import remove_leftovers
from qdiff.files.images import Shape, check_channels, check_image, image_path, to_uint8, write_image

logger = logging.getLogger(__name__)

SampleFn = Callable[[Sequence[int]], Iterable[Tensor]]
Decode = Callable[[Tensor], Tensor]
StepCallback = Callable[[Sequence[int], int, Tensor], None]


def missing_images(indices: Iterable[int], folder: Path, shape: Shape) -> list[int]:
    """Return the indices of the images that `folder` lacks.

    Raises:
        UserError: an existing file is not a complete PNG of this shape, or no PNG can have this shape.
    """
    check_channels(shape[0])
    names, missing = set(os.listdir(folder)) if folder.exists() else set(), []
    for i in indices:
        path = image_path(folder, i)
        if path.name in names:
            check_image(path, shape)
        else:
            missing.append(i)
    return missing


def sample_images(
    sample_fn: SampleFn,
    indices: Iterable[int],
    folder: Path,
    shape: Shape,
    batch_size: int,
    *,
    decode: Decode = lambda x: x,
    metadata: Callable[[int], Mapping[str, str]] = lambda index: {},
    on_step: StepCallback | None = None,
) -> int:
    """Sample the images that `folder` lacks and write them as 000000.png, 000001.png, ...

    Each file appears whole or not at all. With the noise of `batch_noise`, image i is the same for every batch size,
    up to the rounding errors of a network whose order of summation depends on the batch size.

    Args:
        sample_fn: indices of B images -> x_t after every sampling step; the last is the result. It should yield
            lazily, so that the progress bar moves and only one x_t is in memory.
        indices: of the wanted images, each >= 0.
        folder: used by this process alone; created if missing.
        shape: (C, H, W) of a finished image; C is 1 (grey) or 3 (RGB).
        batch_size: images per batch, >= 1.
        decode: the last x_t -> images (B, *shape) in [-1, 1]; values outside are clamped.
        metadata: index -> text chunks of the PNG, key (1 to 79 Latin-1 characters) -> any text.
        on_step: called with (indices, step counted from 0, x_t) after every step, as `frame_writer` returns it.

    Returns:
        the number of images made.

    Raises:
        UserError: as `missing_images`, before anything is sampled; or an image is not finite, in which case none of
            its batch is written.
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
            for step, x in enumerate(sample_fn(batch)):
                bar.set_postfix_str(f"step {step + 1}")
                if on_step:
                    on_step(batch, step, x)
            images = decode(x)
            check_finite(images, batch)
            for i, pixels in zip(batch, to_uint8(images), strict=True):
                write_image(image_path(folder, i), pixels, metadata(i))
                bar.update()
            logger.debug("images %d to %d written", batch[0], batch[-1])
    return len(missing)


def frame_writer(folder: Path, decode: Decode = lambda x: x) -> StepCallback:
    """Return an `on_step` for `sample_images` that writes every step: `folder`/000007/000000.png is image 7's first.

    Existing frames are replaced, because a killed run may have left some of an image that is made again.

    Args:
        folder: used by this process alone; created with the first frame.
        decode: x_t -> images (B, C, H, W) in [-1, 1], grey or RGB; values outside are clamped.
    """
    for frames in folder.glob("*/"):
        remove_leftovers(frames)

    def write_frames(indices: Sequence[int], step: int, x: Tensor) -> None:
        for i, pixels in zip(indices, to_uint8(decode(x)), strict=True):
            write_image(image_path(folder / f"{i:06d}", step), pixels)

    return write_frames


def check_finite(images: Tensor, batch: Sequence[int]) -> None:
    """Raise UserError if one of the images (B, C, H, W) with these indices is not finite."""
    finite = images.isfinite().flatten(1).all(1).tolist()
    for i, is_finite in zip(batch, finite, strict=True):
        if not is_finite:
            raise UserError(
                f"image {i} is not finite (NaN or infinity): sample it in full precision and float32 to tell whether "
                "quantization, the precision or the weights cause it"
            )
