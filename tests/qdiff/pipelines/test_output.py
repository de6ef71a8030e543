"""What a run leaves in its folder."""

from dataclasses import replace
from pathlib import Path
from threading import Timer

import numpy as np
import pytest
import torch
from PIL import Image

from qdiff.errors import UserError
from qdiff.files.atomic import PARTIAL
from qdiff.pipelines.load import load_pipeline
from qdiff.pipelines.output import Output
from qdiff.pipelines.pipeline import Pipeline
from qdiff.sampling.rank import ALONE, Rank
from qdiff.sampling.run_folder import RunFolder
from tests.qdiff.sampling.test_folder_lock import other
from tests.tiny import write_tiny


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Pipeline:
    return load_pipeline(write_tiny(tmp_path_factory.mktemp("model")), steps=2, device="cpu", batch_size=2)


def written(output: Output, pipeline: Pipeline, folder: Path, rank: Rank = ALONE) -> tuple[str, set[str]]:
    """Write; return the line, and the files but the logs and the lock."""
    with RunFolder.open(folder, rank=rank) as run:
        line = output.write(pipeline, run)
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return line, files - {"log.txt", "log_rank1.txt", ".lock"}


IMAGES = {f"img/{i:06d}.png" for i in range(3)}


@pytest.mark.parametrize(
    ("output", "files", "said"),
    [
        (Output(3), {*IMAGES, "grid.png"}, "3 images in {0}/img, the first ones in {0}/grid.png"),
        (Output(3, grid=False), IMAGES, "3 images in {0}/img"),
        (Output(3, images=False), {"grid.png"}, "3 images in {0}/grid.png"),
        (Output(3, images=False, grid=False), set(), "3 images made, none kept"),
        (
            Output(3, sequence=True),
            {*IMAGES, "grid.png"} | {f"sequence/{i:06d}/{step:06d}.png" for i in range(3) for step in range(2)},
            "3 images in {0}/img, the first ones in {0}/grid.png",
        ),
    ],
)
def test_files(output, files, said, pipeline, tmp_path):
    line, found = written(output, pipeline, tmp_path)
    assert (line, found) == (said.format(tmp_path), files)


def test_the_images_are_those_of_the_pipeline(pipeline, tmp_path):
    written(Output(3, array=True), pipeline, tmp_path)
    images = [np.array(Image.open(tmp_path / name)) for name in sorted(IMAGES)]
    expected = pipeline.sample(3).tensor.permute(0, 2, 3, 1).numpy()
    assert np.array_equal(np.stack(images), expected)
    assert np.array_equal(np.load(tmp_path / "3x8x8x3-samples.npz")["arr_0"], expected)


def test_columns_of_the_grid(pipeline, tmp_path):
    written(Output(3, columns=1), pipeline, tmp_path / "one")
    written(Output(3, columns=3), pipeline, tmp_path / "three")
    (w1, h1), (w3, h3) = (Image.open(tmp_path / name / "grid.png").size for name in ("one", "three"))
    assert w1 < h1 and (w3, h3) == (h1, w1)


def test_a_grid_alone_is_not_made_again(pipeline, tmp_path):
    written(Output(3, images=False), pipeline, tmp_path)
    before = (tmp_path / "grid.png").stat().st_mtime_ns
    line, _ = written(Output(3, images=False), pipeline, tmp_path)
    assert line == f"finished before: {tmp_path / 'grid.png'}"
    assert (tmp_path / "grid.png").stat().st_mtime_ns == before
    (tmp_path / "grid.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"grid\.png"):
        written(Output(3, images=False), pipeline, tmp_path)


def test_what_needs_all_images_is_left_to_the_first_rank(pipeline, tmp_path):
    leftover = tmp_path / "img" / f"000001.png.4711{PARTIAL}"
    leftover.parent.mkdir()
    leftover.write_bytes(b"half")
    _, files = written(Output(3, array=True), pipeline, tmp_path, Rank(1, 2))
    assert files == IMAGES | {f"img/{leftover.name}"}, "which another rank may be writing"
    line, files = written(Output(3, array=True), pipeline, tmp_path, Rank(0, 2))
    assert files == IMAGES | {"grid.png", "3x8x8x3-samples.npz"}
    assert line == f"3 images in {tmp_path}/img, the first ones in {tmp_path}/grid.png"


def test_images_are_deleted_once_no_rank_looks_for_them(pipeline, tmp_path):
    output = Output(3, images=False)
    assert written(output, pipeline, tmp_path, Rank(1, 2))[1] == IMAGES
    found = []
    with other(tmp_path, Rank(1, 2)) as process:

        def leave() -> None:
            found.extend(path.name for path in (tmp_path / "img").iterdir())
            process.kill()

        Timer(1, leave).start()
        assert written(output, pipeline, tmp_path, Rank(0, 2))[1] == {"grid.png"}
    assert len(found) == 3
    assert written(output, pipeline, tmp_path, Rank(1, 2))[1] == {"grid.png"}, "one that comes later makes none"


def test_ranks_need_a_file_that_tells_them_what_is_done():
    for output in (Output(3), Output(3, images=False), Output(3, grid=False)):
        output.check_shared()
    with pytest.raises(UserError, match=r"--skip_save with --skip_grid .* start a single process"):
        Output(3, images=False, grid=False).check_shared()


def test_a_file_in_the_place_of_an_image(pipeline, tmp_path):
    (tmp_path / "img").mkdir()
    Image.new("RGB", (9, 8)).save(tmp_path / "img" / "000001.png")
    with RunFolder.open(tmp_path) as folder, pytest.raises(UserError, match=r"000001\.png"):
        Output(3).check(pipeline, folder)
    with RunFolder.open(tmp_path) as folder:
        Output(1).check(pipeline, folder)


def test_marks_need_large_images(pipeline):
    with pytest.raises(UserError, match="--watermark needs"):
        replace(Output(1), watermark=True).decode_for(pipeline)
    x = torch.zeros(1, 3, 8, 8)
    assert torch.equal(Output(1).decode_for(pipeline)(x), pipeline.decode(x))
