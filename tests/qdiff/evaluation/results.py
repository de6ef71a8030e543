"""Two sections of results for tests of tables, reports and plots."""

from dataclasses import replace
from pathlib import Path

from qdiff.evaluation.distributions import Frechet
from qdiff.evaluation.features import FeatureNet
from qdiff.evaluation.measures import Metric
from qdiff.evaluation.paired import MAE, PSNR, RECOGNISED
from qdiff.evaluation.record import Evaluation, ImagesRecord, Row
from qdiff.evaluation.results import Result, Section

(FD,) = Frechet.columns(FeatureNet(width=8).identity)
FP, W4 = "python sample.py -l 'a b'", "python sample.py --ptq -l <x>"
FP_VALUES = {PSNR: None, MAE: 0.0, FD: 1.234}  # None is infinite
W4_VALUES = {PSNR: 23.456, MAE: 7.891, FD: 12.345}


def evaluation(values: dict[Metric, float | None], published: dict[str, float] | None = None) -> Evaluation:
    """An evaluation with these values."""
    known = published or {}
    rows = [Row(m.key, m.name, m.unit, x, "qdiff", known.get(m.key), m.meaning, m.spec) for m, x in values.items()]
    images = ImagesRecord("runs/a", "images", 64, (3, 8, 8), "0" * 64, "nearest")
    return Evaluation(images, None, None, None, (), tuple(rows), notes=("of few images",))


def result(name: str, method: str, command: str, size: int, values: dict, **published: float) -> Result:
    found = evaluation(values, published)
    return Result(name, method, command, found, size, 10_944_396, None, published, "a paper" if published else "")


RESULTS = [
    result("fp", "FP", FP, 10_944_396, FP_VALUES),
    result("w4", "<W4> & A8", W4, 1_500_000, W4_VALUES),
]
GUIDED = [
    result("fp", "FP", FP, 10_944_396, FP_VALUES | {RECOGNISED: 1.0}, mae=0.0),
    result("w4", "<W4> & A8", W4, 1_500_000, W4_VALUES | {RECOGNISED: 0.25}, psnr=23.0, is_=3.0),
]
CELLS = [
    ["FP", "∞", "0.00", "1.23", "10.94 MB (1.000 x)"],
    ["<W4> & A8", "23.46", "7.89", "12.35", "1.50 MB (0.137 x)"],
]
TITLES = ["method", "PSNR to FP [dB]", "distance to FP", "FD on emoji-classifier features (not FID)", "file"]
ALL_TITLES = [*TITLES[:-1], "category recognised", "file"]
LINES = [
    ["method", "metric", "published", "obtained", "difference"],
    ["FP", "distance to FP", "0.000", "0.000", "+0"],
    ["<W4> & A8", "PSNR to FP [dB]", "23.00", "23.46", "+0.456"],
    ["<W4> & A8", "is_", "3.000", "-", "-"],
]
ONE = Section("one", "A model", RESULTS)
TWO = Section("two", "Another model", GUIDED, "python make", ["of <64> images"], shown=("red <apple>", "pear"))
SHOWN = "Columns of images, from the left: red <apple>, pear."


def with_images(section: Section, images: dict[str, Path]) -> Section:
    """The section with overviews, by method."""
    return replace(section, results=[replace(r, grid=images[r.method]) for r in section.results])
