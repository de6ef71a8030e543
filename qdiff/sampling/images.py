"""The sampling loop: it makes the images that a folder lacks, batch by batch, and writes each once."""

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
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
Claim = Callable[[Sequence[int]], AbstractContextManager[bool]]

POLL = 0.5  # seconds between two looks at batches that other processes are making


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
    claim: Claim = lambda batch: nullcontext(True),
    progress: bool | None = None,
) -> int:
    """Sample the images that `folder` lacks and write them as 000000.png, 000001.png, ...

    Each file appears whole or not at all. The batches are always those of `indices` as a whole: one that lacks an image
    is sampled whole, and what exists of it is kept. So neither an interruption nor the number of processes changes an
    image, although a network's order of summation, and with it rounding errors, may depend on the batch.

    Args:
        sample_fn: indices of B images -> x_t after every sampling step; the last is the result. It should yield
            lazily, so that the progress bar moves and only one x_t is in memory.
        indices: of the wanted images, each >= 0.
        folder: created if missing.
        shape: (C, H, W) of a finished image; C is 1 (grey) or 3 (RGB).
        batch_size: images per batch, >= 1.
        decode: the last x_t -> images (B, *shape) in [-1, 1]; values outside are clamped.
        metadata: index -> text chunks of the PNG, key (1 to 79 Latin-1 characters) -> any text.
        on_step: called with (indices, step counted from 0, x_t) after every step, as `frame_writer` returns it.
        claim: keeps other processes from a batch, inside; yields False if one of them has it. Batches of others are
            waited for, and made if their process ends before they are done.
        progress: show a progress bar; None shows it on a terminal.

    Returns:
        the number of images that this process made.

    Raises:
        UserError: as `missing_images`, before anything is sampled; or an image is not finite, in which case none of
            its batch is written.
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    indices = list(indices)
    missing = set(missing_images(indices, folder, shape))
    batches = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    done, made = len(indices) - len(missing), 0
    logger.info("%s: %d of %d images exist, %d to make", folder, done, len(indices), len(missing))
    hidden = None if progress is None else not progress
    with tqdm(total=len(indices), initial=done, unit="image", disable=hidden) as bar:
        for batch in _claimed([batch for batch in batches if not missing.isdisjoint(batch)], claim):
            absent = [i for i in batch if not image_path(folder, i).exists()]
            if absent:  # else another process has made them meanwhile
                for step, x in enumerate(sample_fn(batch)):
                    bar.set_postfix_str(f"step {step + 1}")
                    if on_step:
                        on_step(batch, step, x)
                images = decode(x)
                check_finite(images, batch)
                for i, pixels in zip(batch, to_uint8(images), strict=True):
                    if i in absent:
                        write_image(image_path(folder, i), pixels, metadata(i))
                logger.debug("images %d to %d written", batch[0], batch[-1])
            made += len(absent)
            bar.update(len(missing.intersection(batch)))
    logger.info("%s: all images exist, %d made by this process", folder, made)
    return made


def _claimed(batches: Sequence[Sequence[int]], claim: Claim) -> Iterator[Sequence[int]]:
    """Yield batches, each claimed while the caller works on it: the first one that no other process has."""
    left = list(batches)
    while left:
        for batch in left:
            with claim(batch) as claimed:
                if claimed:
                    yield batch
                    break
        else:
            time.sleep(POLL)
            continue
        left.remove(batch)


def frame_writer(folder: Path, decode: Decode = lambda x: x) -> StepCallback:
    """Return an `on_step` for `sample_images` that writes every step: `folder`/000007/000000.png is image 7's first.

    Existing frames are replaced, because a killed run may have left some of an image that is made again.

    Args:
        folder: created with the first frame.
        decode: x_t -> images (B, C, H, W) in [-1, 1], grey or RGB; values outside are clamped.
    """

    def write_frames(indices: Sequence[int], step: int, x: Tensor) -> None:
        for i, pixels in zip(indices, to_uint8(decode(x)), strict=True):
            frames = folder / f"{i:06d}"
            if step == 0:
                remove_leftovers(frames)
            write_image(image_path(frames, step), pixels)

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
