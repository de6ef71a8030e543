"""Sets of images to evaluate: folders, runs, arrays and streams; all give uint8 batches."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from qdiff.errors import UserError
from qdiff.evaluation.record import SamplingRecord
from qdiff.evaluation.run_protocol import CONFIG, labels_of, read_config, rounding_of, sampling_record, section
from qdiff.files.digest import digest, file_digest
from qdiff.files.foreign_images import PNG, common_shape, format_of, list_images, read_foreign
from qdiff.files.images import Shape, image_text
from qdiff.files.npz import StoredImages


class ImageSet(Protocol):
    """Images in a fixed order."""

    @property
    def source(self) -> str:
        """What to call them."""

    @property
    def count(self) -> int | None:
        """Their number; None if it shows only at the end."""

    @property
    def rounding(self) -> str | None:
        """How they were rounded to 8 bits, see `ImagesRecord`."""

    @property
    def sampling(self) -> SamplingRecord | None:
        """How they were sampled; None if it is not known."""

    @property
    def prompts(self) -> Sequence[str] | None:
        """Their prompts, of which image i has the i-th, starting over after the last; None if there are none."""

    @property
    def files(self) -> str | None:
        """Formats of their files, such as "PNG"; None if there are none."""

    @property
    def labels(self) -> Sequence[str] | None:
        """Names of their classes, one each; None if they are not known."""

    def batches(self, size: int) -> Iterator[Tensor]:
        """Yield all images, uint8 (B, C, H, W), B = `size` but for the last batch.

        Raises:
            UserError: an image cannot be read, or has another shape than those before it.
        """


@dataclass(frozen=True)
class Folder:
    """An `ImageSet` of the PNG, JPEG and WebP files in a folder, in the order of their names."""

    source: str
    paths: Sequence[Path]
    shape: Shape
    rounding: str | None = None
    sampling: SamplingRecord | None = None
    classes: object = None  # their names, as the run's configuration has them

    @classmethod
    def open(cls, folder: Path, most: int | None = None) -> "Folder":
        """List the images of a folder, or of a run's `img`, and read their headers.

        Args:
            folder: the folder.
            most: list only so many, the first ones; None lists all.

        Raises:
            UserError: there are no images, their sizes differ, or one is damaged or neither 8-bit grey nor RGB.
        """
        run = folder / "img" if (folder / CONFIG).is_file() else None
        paths = list_images(run or folder)[:most]
        if not paths:
            known = "PNG, JPEG or WebP images"
            raise UserError(f"'{run or folder}' has no {known}: give a folder of them, a run's folder or an .npz")
        shape = common_shape(paths)
        if run is None:
            return cls(str(folder), paths, shape)
        config = read_config(folder / CONFIG)
        model = section(config, "config")
        sampling = sampling_record(image_text(paths[0]), section(config, "sha256").get("weights"))
        return cls(str(folder), paths, shape, rounding_of(section(model, "data")), sampling, model.get("classes"))

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.paths)

    @property
    def files(self) -> str:
        """Formats of the files, such as "JPEG, PNG"."""
        return ", ".join(sorted({str(format_of(path)) for path in self.paths}))

    @property
    def prompts(self) -> list[str] | None:
        """What the PNGs say about their prompts; None unless all do."""
        if self.files != PNG:
            return None
        texts = [image_text(path).get("prompt") for path in self.paths]
        return [text for text in texts if text is not None] if None not in texts else None

    @property
    def labels(self) -> list[str] | None:
        """Names of the classes that the PNGs of a run state; None unless all do."""
        return None if self.files != PNG else labels_of(map(image_text, self.paths), self.classes)

    def batches(self, size: int) -> Iterator[Tensor]:
        for start in range(0, len(self.paths), size):
            yield torch.stack([read_foreign(path, self.shape) for path in self.paths[start : start + size]])

    def files_digest(self) -> str:
        """Return a digest of all files."""
        return digest(file_digest(path).encode() for path in self.paths)


@dataclass(frozen=True)
class Array:
    """An `ImageSet` of the images in an `.npz`."""

    stored: StoredImages
    rounding: str | None = None
    sampling: SamplingRecord | None = None
    prompts: Sequence[str] | None = None
    labels: Sequence[str] | None = None
    files: str | None = None

    @property
    def source(self) -> str:
        """Path of the archive."""
        return str(self.stored.path)

    @property
    def count(self) -> int:
        """Number of images."""
        return self.stored.count

    @property
    def shape(self) -> Shape:
        """(C, H, W)."""
        return self.stored.shape

    def batches(self, size: int) -> Iterator[Tensor]:
        return self.stored.batches(size)

    def files_digest(self) -> str:
        """Return the digest of the archive."""
        return file_digest(self.stored.path)


@dataclass(frozen=True)
class Stream:
    """An `ImageSet` that is made while it is evaluated, and read once.

    Args:
        images: batches of any sizes, uint8 (B, 1 or 3, H, W).
    """

    images: Iterable[Tensor]
    source: str = "stream"
    count: int | None = None
    rounding: str | None = None
    sampling: SamplingRecord | None = None
    prompts: Sequence[str] | None = None
    labels: Sequence[str] | None = None
    files: str | None = None

    def batches(self, size: int) -> Iterator[Tensor]:
        waiting: Tensor | None = None
        for batch in self.images:
            _check_batch(batch, None if waiting is None else waiting.shape[1:])
            waiting = batch.cpu() if waiting is None else torch.cat([waiting, batch.cpu()])
            while len(waiting) >= size:
                yield waiting[:size]
                waiting = waiting[size:]
        if waiting is not None and len(waiting):
            yield waiting


class WithPrompts:
    """An `ImageSet` whose prompts are given.

    Args:
        images: the set.
        prompts: at least one; image i has the i-th, starting over after the last.
    """

    def __init__(self, images: ImageSet, prompts: Sequence[str]):
        self.source, self.count = images.source, images.count
        self.rounding, self.sampling, self.files = images.rounding, images.sampling, images.files
        self.prompts: Sequence[str] | None = prompts
        self.labels = images.labels
        self.batches = images.batches


def open_images(path: Path) -> Folder | Array:
    """Open a folder of images, the folder of a run, or an `.npz`. Raises UserError if it is none of these."""
    if path.is_dir():
        return Folder.open(path)
    if not path.exists():
        raise UserError(f"'{path}' does not exist: give a folder of images, a run's folder or an .npz")
    return Array(StoredImages.open(path))


def _check_batch(batch: Tensor, shape: torch.Size | None) -> None:
    if not isinstance(batch, Tensor) or batch.dtype != torch.uint8 or batch.ndim != 4 or batch.shape[1] not in (1, 3):
        what = f"{batch.dtype} of {tuple(batch.shape)}" if isinstance(batch, Tensor) else type(batch).__name__
        raise UserError(f"batches must be uint8 of shape (B, 1 or 3, H, W), not {what}: convert them with to_uint8")
    if shape is not None and batch.shape[1:] != shape:
        raise UserError(f"a batch has images of {tuple(batch.shape[1:])} after others of {tuple(shape)}: give one size")
