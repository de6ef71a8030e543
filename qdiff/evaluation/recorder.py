"""What a set of images is: number, shape and digest, found while its batches pass."""

import hashlib
from collections.abc import Iterator

from torch import Tensor

from qdiff.errors import UserError
from qdiff.evaluation.image_sets import ImageSet
from qdiff.evaluation.record import ImagesRecord
from qdiff.files.digest import tensor_bytes


class Recorder:
    """Checks and describes the batches that pass: their number, shape and digest.

    Args:
        images: where they come from.
    """

    def __init__(self, images: ImageSet):
        self._images, self._sha, self._count = images, hashlib.sha256(), 0
        self._shape: tuple[int, ...] = ()

    def batches(self, size: int) -> Iterator[Tensor]:
        """Yield the batches of the set. Raises UserError as the set does, or if there are no images."""
        for batch in self._images.batches(size):
            if not self._count:
                self._shape = tuple(batch.shape[1:])
                self._sha.update(str(self._shape).encode())
            self._sha.update(tensor_bytes(batch))
            self._count += len(batch)
            yield batch
        if not self._count:
            raise UserError(f"'{self._images.source}' has no images: give at least one")

    @property
    def record(self) -> ImagesRecord:
        """The record of the images so far."""
        images, sha256 = self._images, self._sha.hexdigest()
        return ImagesRecord(images.source, "images", self._count, self._shape, sha256, images.rounding, images.files)
