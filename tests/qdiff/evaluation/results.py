"""Two sections of results for tests of tables and reports."""

import math
from dataclasses import replace

from qdiff.evaluation.distributions import Frechet
from qdiff.evaluation.features import FeatureNet
from qdiff.evaluation.paired import MAE, PSNR, RECOGNISED
from qdiff.evaluation.results import Result, Section

METRICS = [PSNR, MAE, *Frechet.columns(FeatureNet(width=8).identity), RECOGNISED]


def result(method: str, command: str, size: int, *values: float | None) -> Result:
    return Result(method, command, dict(zip(["psnr", "mae", "frechet", "recognised"], values)), size, 10_944_396)


FP, W4 = "python sample.py -l 'a b'", "python sample.py --ptq -l <x>"
RESULTS = [
    result("FP", FP, 10_944_396, math.inf, 0.0, 1.234, None),
    result("<W4> & A8", W4, 1_500_000, 23.456, 7.891, 12.345, None),
]
GUIDED = [replace(r, values={**r.values, "recognised": share}) for r, share in zip(RESULTS, (1.0, 0.25))]
CELLS = [
    ["FP", "∞", "0.00", "1.23", "10.94 MB (1.000 x)"],
    ["<W4> & A8", "23.46", "7.89", "12.35", "1.50 MB (0.137 x)"],
]
ALL_TITLES = [
    "method",
    "PSNR to FP [dB]",
    "distance to FP",
    "FD on emoji-classifier features (not FID)",
    "category recognised",
    "file",
]
TITLES = [title for title in ALL_TITLES if title != "category recognised"]
ONE = Section("one", "A model", METRICS, RESULTS, {})
TWO = Section("two", "Another model", METRICS, GUIDED, {}, shown=("red <apple>", "pear"))
SHOWN = "Columns of images, from the left: red <apple>, pear."
