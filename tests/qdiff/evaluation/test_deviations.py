"""What makes a table no reproduction: each reason by itself, on evaluations written by hand."""

from dataclasses import replace

import pytest

from qdiff.config.tables import Reference, Row, Table, Weights
from qdiff.evaluation import record
from qdiff.evaluation.choices import Choices
from qdiff.evaluation.deviations import deviations
from qdiff.evaluation.record import Evaluation, ImagesRecord, NetworkRecord
from qdiff.evaluation.results import Result, Section
from qdiff.files.digest import file_digest


@pytest.fixture
def table(tmp_path) -> Table:
    """A table whose weights are there."""
    file = tmp_path / "weights.ckpt"
    file.write_bytes(b"weights")
    row = Row("fp", "full precision", "a paper", {"steps": 4}, {"fid": 4.22})
    weights = Weights("ckpt", "by hand", str(file), sha256=file_digest(file))
    return Table("mine", "A table", "ddim", 50, "", weights, Reference("ask", images=100), (row,))


def evaluation(
    metric: str = "fid", value: float = 4.25, images: int = 50, standard: bool = True, **changes
) -> Evaluation:
    """An evaluation with one value."""
    found = Evaluation(
        ImagesRecord("runs/fp", "images", images, (3, 8, 8), "0" * 64, "nearest"),
        ImagesRecord("train.npz", "images", 100, (3, 8, 8), "1" * 64, None),
        None,
        None,
        (NetworkRecord("features", "a network", "2" * 64, standard),),
        (record.Row(metric, metric.upper(), "", value, "by hand", 4.22 if metric == "fid" else None),),
    )
    return replace(found, **changes)


def row(found: Evaluation, **published: float) -> Result:
    return Result("fp", "full precision", "python x", found, 4, 4, None, published or {"fid": 4.22}, "a paper")


def test_nothing_differs(table):
    assert deviations(table, Choices(), [row(evaluation())]) == []
    assert deviations(table, Choices({"steps": 4}, weights=table.weights.file and None), [row(evaluation())]) == []


def test_each_reason(table, tmp_path):
    other = tmp_path / "other.ckpt"
    other.write_bytes(b"others")
    assert deviations(table, Choices({"steps": 5}), [row(evaluation())]) == ["steps is 5 instead of 4"]
    assert deviations(table, Choices(), [row(evaluation(images=7))]) == ["the values are of 7 images instead of 50"]
    (told,) = deviations(table, Choices(weights=other), [row(evaluation())])
    assert told.startswith(f"'{other}' does not hold the published weights (sha256 {file_digest(other)[:8]}")
    (told,) = deviations(table, Choices(calibrated={"w4": other}), [row(evaluation())])
    assert told == f"w4 is calibrated elsewhere, '{other}'"
    smaller = ImagesRecord("train.npz", "images", 99, (3, 8, 8), "1" * 64, None)
    (told,) = deviations(table, Choices(), [row(evaluation(reference=smaller))])
    assert told == "the reference is of 99 images instead of 100"
    (told,) = deviations(table, Choices(), [row(evaluation(standard=False))])
    assert told == "the feature network is another one"


def test_what_cannot_be_checked_is_said(table):
    unknown = replace(table, weights=replace(table.weights, sha256=""), images=0)
    weights, images = sorted(deviations(unknown, Choices(), [row(evaluation())]), reverse=True)
    assert weights.startswith("whether '") and weights.endswith("no digest of them is")
    assert images.startswith("the values are of 50 images, and the publication's prompts")


def test_weights_in_the_place_of_downloaded_ones(table, tmp_path):
    downloaded = replace(table, weights=Weights("ckpt", "downloads them", published="ema_cifar10"))
    assert deviations(downloaded, Choices(), [row(evaluation())]) == []
    (told,) = deviations(downloaded, Choices(weights=tmp_path / "weights.ckpt"), [row(evaluation())])
    assert "(md5 " in told and " instead of 1fa350b9)" in told


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (evaluation("psnr", left_out={"fid": "too few"}), "fid has no value (too few)"),
        (evaluation("psnr"), "fid has no value (give the reference's images or statistics with --reference)"),
        (evaluation("frechet"), "fid has no value (it has another name, because of the feature network or of the"),
    ],
)
def test_why_a_published_value_has_no_counterpart(table, found, reason):
    (told,) = deviations(table, Choices(), [row(found)])
    assert told.startswith(reason)


def test_another_reference_than_the_one_of_the_table(table, tmp_path):
    own, same, other = (tmp_path / name for name in ("own", "same", "other"))
    for path, content in ((own, b"1"), (same, b"1"), (other, b"2")):
        path.write_bytes(content)
    fixed = replace(table, reference=Reference("comes with it", str(own)))
    assert deviations(fixed, Choices(reference=same), [row(evaluation())]) == []
    (told,) = deviations(fixed, Choices(reference=other), [row(evaluation())])
    assert told == f"the reference is '{other}' instead of '{own}'"


def test_what_full_precision_misses_comes_right_after_the_deviations():
    section = Section("mine", "A table", [row(evaluation(value=5.22))], "python", ["of 7 images"])
    assert section.statements[0] == "This is no reproduction: of 7 images."
    assert "misses its own published value by +1.00" in section.statements[1]


def test_random_weights_are_said_first_and_need_not_be_there(table, tmp_path):
    chosen = Choices({"steps": 5}, weights=tmp_path / "random.safetensors", random=True)
    assert deviations(table, chosen, [row(evaluation())]) == ["the weights are random", "steps is 5 instead of 4"]
