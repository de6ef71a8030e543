"""Quality of methods against what they cost, from the results files of reports."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdiff.errors import UserError, suggestion
from qdiff.evaluation.results import Section, json_text

REMEDY = "give the results.json of a report"


@dataclass(frozen=True)
class MethodResult:
    """A method of a results file.

    Attributes:
        model: name of the model that it was applied to.
        method: its name.
        numbers: key -> finite value: metrics, `size` of the network's file in bytes, and `bits`, which the file takes
            per parameter of the network. An infinite metric, such as the PSNR of equal images, is left out.
    """

    model: str
    method: str
    numbers: dict[str, float]


def read_results(path: Path) -> list[MethodResult]:
    """Read the methods of a results file.

    Args:
        path: `results.json`, as `qdiff.evaluation.results.json_text` describes it.

    Raises:
        UserError: the file is missing, of another kind, or without results.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"cannot read '{path}' ({e.strerror}): {REMEDY}") from e
    except ValueError as e:
        raise UserError(f"'{path}' is not valid JSON ({e}): {REMEDY}") from e
    try:
        found = [_result(model, row) for model, rows in content["results"].items() for row in rows]
    except (AttributeError, KeyError, TypeError, ZeroDivisionError) as e:
        raise UserError(f"'{path}' is not a results file with methods and the sizes of their files: {REMEDY}") from e
    if not found:
        raise UserError(f"'{path}' has no results: {REMEDY}")
    return found


def _result(model: str, row: dict[str, Any]) -> MethodResult:
    numbers = {key: float(x) for key, x in row.items() if isinstance(x, int | float)}
    numbers["bits"] = 32 * numbers["size"] / numbers.pop("fp32_size")
    return MethodResult(model, str(row["method"]), numbers)


def results_of(section: Section) -> list[MethodResult]:
    """Return the methods of a section of a report; its title names the model."""
    found = json.loads(json_text([section], {}))["results"][section.name]
    return [_result(section.title, row) for row in found]


def check_key(flag: str, key: str, results: list[MethodResult]) -> None:
    """Check that some result has a number. Raises UserError, which names the flag, otherwise."""
    known = {name: None for result in results for name in result.numbers}  # in their order
    if key not in known:
        hint = suggestion(key, known) or f"use one of {', '.join(known)}"
        raise UserError(f"{flag} {key}: the results have no such number: {hint}")
