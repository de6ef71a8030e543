"""The output of a run: images, a grid of the first ones, an array for FID tools."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from qdiff.errors import UserError
from qdiff.files.arrays import write_array
from qdiff.files.atomic import remove_leftovers
from qdiff.files.grid import write_grid
from qdiff.files.images import image_path, image_shape
from qdiff.pipelines.pipeline import Pipeline
from qdiff.pipelines.png_text import png_text
from qdiff.pipelines.watermark import watermark
from qdiff.sampling.images import StepCallback, frame_writer, missing_images, sample_images
from qdiff.sampling.run_folder import RunFolder

GRID_IMAGES = 64


@dataclass(frozen=True)
class Output:
    """The files that a run writes into its folder.

    Args:
        num_images: number of images.
        columns: columns of the grid; None takes one per class if there are few, else makes the grid square.
        grid: write the grid.
        images: keep the images; if False, only the grid is kept, and it shows all of them.
        sequence: also keep an image of every sampling step.
        array: write `NxHxWxC-samples.npz`, which FID tools read.
        watermark: mark images invisibly as generated.
    """

    num_images: int
    columns: int | None = None
    grid: bool = True
    images: bool = True
    sequence: bool = False
    array: bool = False
    watermark: bool = False

    def decode_for(self, pipeline: Pipeline) -> Callable[[Tensor], Tensor]:
        """Return the function from the last x_prev, (B, C, h, w), to images, (B, 1 or 3, H, W) in about -1..1.

        Raises:
            UserError: images of this model cannot be watermarked.
        """
        if not self.watermark:
            return pipeline.decode
        mark = watermark(*pipeline.image_shape)
        return lambda x: mark(pipeline.decode(x))

    def check_shared(self) -> None:
        """Raise UserError if several processes could not tell from the files what is done."""
        if not (self.images or self.grid):
            raise UserError(
                "--skip_save with --skip_grid leaves nothing that tells several processes what is done: leave one of "
                "them out, or start a single process"
            )

    def check(self, pipeline: Pipeline, folder: RunFolder) -> None:
        """Raise UserError if a file under the name of an image is not an image of this run."""
        missing_images(range(self.num_images), folder.image_dir, pipeline.image_shape)

    def write(self, pipeline: Pipeline, folder: RunFolder) -> str:
        """Sample the images that the folder lacks, then write the grid and the array; return a line that sums it up.

        Ranks divide the batches among themselves. Rank 0 does what needs all images, and the others return with it, or
        before it if it deletes images.

        Raises:
            UserError: as `check`, or an image is not finite.
        """
        if self._finished(folder):
            return f"finished before: {folder.grid}"
        self._sample(pipeline, folder)
        if folder.rank.first:
            self._finish(pipeline, folder)
        elif self.images:
            folder.lock.wait_until_first_left()
        return f"{self.num_images} images {self._where(folder)}"

    def _sample(self, pipeline: Pipeline, folder: RunFolder) -> None:
        sample_images(
            lambda indices: (step.x_prev for step in pipeline.steps(indices)),
            range(self.num_images),
            folder.image_dir,
            pipeline.image_shape,
            pipeline.batch_size,
            decode=self.decode_for(pipeline),
            metadata=lambda i: png_text(pipeline, [i]),
            on_step=self._on_step(pipeline, folder.path),
            claim=folder.lock.claim,
            progress=None if folder.rank.first else False,
        )

    def _finish(self, pipeline: Pipeline, folder: RunFolder) -> None:
        """Do what needs all images."""
        remove_leftovers(folder.image_dir)  # of ranks that were killed: nobody writes an image now
        paths = [image_path(folder.image_dir, i) for i in range(self.num_images)]
        if self.array:
            write_array(paths, folder.path)
        if self.grid:
            self._write_grid(pipeline, paths[:GRID_IMAGES] if self.images else paths, folder)
        if not self.images:
            folder.lock.wait_until_others_left()  # who look for images now, and if they come later for the grid
            for path in paths:
                path.unlink()

    def _finished(self, folder: RunFolder) -> bool:
        """Return whether only the grid is to be kept and it exists. Raises UserError for a damaged one."""
        if self.images or not folder.grid.exists():
            return False
        image_shape(folder.grid)
        return True

    def _on_step(self, pipeline: Pipeline, folder: Path) -> StepCallback | None:
        return frame_writer(folder / "sequence", pipeline.decode) if self.sequence else None

    def _write_grid(self, pipeline: Pipeline, paths: Sequence[Path], folder: RunFolder) -> None:
        write_grid(paths, folder.grid, self.columns or pipeline.columns, png_text(pipeline, range(len(paths))))

    def _where(self, folder: RunFolder) -> str:
        if not self.images:
            return f"in {folder.grid}" if self.grid else "made, none kept"
        return f"in {folder.image_dir}" + (f", the first ones in {folder.grid}" if self.grid else "")
