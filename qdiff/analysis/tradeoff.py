"""Quality of methods against what they cost, from results files of evaluations and of reports."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qdiff.errors import UserError, first_of, suggestion
from qdiff.evaluation.record import Evaluation
from qdiff.evaluation.record_file import evaluation_of, is_evaluation
from qdiff.evaluation.record_table import check_comparable
from qdiff.evaluation.results import Section, json_text
from qdiff.files.json_file import read_json

REMEDY = "give a results file of python -m qdiff evaluate, or the results.json of a report"


@dataclass(frozen=True)
class MethodResult:
    """A method of a results file.

    Attributes:
        model: name of the model that it was applied to.
        method: its name.
        numbers: key -> finite value: metrics, `size` of the network's file in bytes, and `bits`, which the file takes
            per parameter of the network; of evaluations also the bit operations `bops` of an image and `step_bops` of
            a step. An infinite metric, such as the PSNR of equal images, is left out.
        titles: key of a metric -> what it is called, where the file says it.
    """

    model: str
    method: str
    numbers: dict[str, float]
    titles: Mapping[str, str] = field(default_factory=dict)


def read_results(paths: Sequence[Path]) -> list[MethodResult]:
    """Read the methods of results files.

    Args:
        paths: what `python -m qdiff evaluate -o` wrote, a method each, named by the file; or `results.json` of reports,
            as `qdiff.evaluation.results.json_text` describes it.

    Raises:
        UserError: a file is missing, of another kind, or without results; or evaluations of one model have another
            reference, feature network or number of images.
    """
    found: list[MethodResult] = []
    evaluations: dict[str, list[Evaluation]] = {}
    for path in paths:
        content = read_json(path, REMEDY)
        if is_evaluation(content):
            evaluation = evaluation_of(path, content)
            result = _of_evaluation(path.stem, evaluation)
            evaluations.setdefault(result.model, []).append(evaluation)
            found.append(result)
        else:
            found += _of_report(path, content)
    for comparable in evaluations.values():
        check_comparable(comparable, "FILE")
    return found


def _of_report(path: Path, content: Any) -> list[MethodResult]:
    try:
        found = [_result(model, row) for model, rows in content["results"].items() for row in rows]
    except (AttributeError, KeyError, TypeError, ZeroDivisionError) as e:
        raise UserError(f"'{path}' is not a results file with methods and the sizes of their files: {REMEDY}") from e
    if not found:
        raise UserError(f"'{path}' has no results: {REMEDY}")
    return found


def _of_evaluation(name: str, evaluation: Evaluation) -> MethodResult:
    model = evaluation.model
    numbers: dict[str, float | None] = dict(evaluation.values)
    if model:
        numbers |= {"size": model.file_bytes, "bits": model.bits, "step_bops": model.step_bops, "bops": model.bops}
    known = {key: float(x) for key, x in numbers.items() if x is not None and math.isfinite(x)}
    titles = {row.metric: row.title for row in evaluation.rows}
    return MethodResult(model.source if model else "unknown model", name, known, titles)


def _result(model: str, row: dict[str, Any]) -> MethodResult:
    numbers = {key: float(x) for key, x in row.items() if isinstance(x, int | float) and math.isfinite(x)}
    numbers["bits"] = 32 * numbers["size"] / numbers.pop("fp32_size")
    return MethodResult(model, str(row["method"]), numbers)


def results_of(section: Section) -> list[MethodResult]:
    """Return the methods of a section of a report; its title names the model."""
    found = json.loads(json_text([section], {}))["results"][section.name]
    return [_result(section.title, row) for row in found]


def check_keys(metric: str, cost: str, results: Sequence[MethodResult]) -> None:
    """Check that some result has a metric and every result a cost. Raises UserError otherwise."""
    known = {name: None for result in results for name in result.numbers}  # in their order
    for flag, key in {"--metric": metric, "--cost": cost}.items():
        if key not in known:
            hint = suggestion(key, known) or f"use one of {', '.join(known)}"
            raise UserError(f"{flag} {key}: the results have no such number: {hint}")
    if lacking := [result.method for result in results if cost not in result.numbers]:
        raise UserError(f"--cost {cost} is not known of {first_of(lacking)}: evaluate the folder of its run")
