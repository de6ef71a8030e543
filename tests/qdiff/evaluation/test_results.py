"""Rows, columns and lines of a comparison, and its results file."""

import json
from dataclasses import asdict, replace

from qdiff.evaluation.lines import Line
from qdiff.evaluation.results import Section, json_text
from tests.qdiff.evaluation.results import ALL_TITLES, CELLS, GUIDED, ONE, RESULTS, TITLES, TWO, evaluation


def cells(section: Section) -> list[list[str]]:
    return [[c.cell(result) for c in section.columns] for result in section.results]


def test_a_column_for_each_metric():
    assert [c.title for c in ONE.columns] == TITLES and cells(ONE) == CELLS
    assert [c.title for c in TWO.columns] == ALL_TITLES
    assert [row[4] for row in cells(TWO)] == ["100%", "25%"]
    meanings = {c.title: c.meaning for c in ONE.columns}
    assert "higher is closer" in meanings["PSNR to FP [dB]"] and meanings["method"] == ""


def test_a_metric_that_a_row_lacks():
    section = replace(ONE, results=[replace(RESULTS[0], evaluation=evaluation({})), GUIDED[1]])
    assert [c.title for c in section.columns] == ALL_TITLES
    assert cells(section)[0] == ["FP", "-", "-", "-", "-", "10.94 MB (1.000 x)"]


def test_seconds_have_a_column_if_any_row_has_them():
    timed = replace(RESULTS[1], seconds={"simulated": 0.25, "torch": 0.1254})
    section = replace(ONE, results=[RESULTS[0], timed])
    assert [c.title for c in section.columns] == [*TITLES, "s per image"]
    assert [row[-1] for row in cells(section)] == ["-", "0.250 simulated, 0.125 torch"]
    assert json.loads(json_text([section], {}))["results"]["one"][1]["seconds"] == {"simulated": 0.25, "torch": 0.1254}


def test_lines_and_their_differences():
    assert Line("a", "FID", 4.0, 4.5).cells == ["a", "FID", "4.000", "4.500", "+0.5"]
    assert Line("a", "FID", None, 4.5).cells == ["a", "FID", "-", "4.500", "-"]
    assert Line("a", "FID", 4.0, None).cells == ["a", "FID", "4.000", "-", "-"]
    assert Line("a", "PSNR", None, float("inf")).cells == ["a", "PSNR", "-", "∞", "-"]


def test_published_values_come_first_and_stay_where_there_is_no_other():
    lines = [(line.metric, line.published, line.obtained) for line in TWO.lines if line.method != "FP"]
    assert lines[:3] == [("PSNR to FP [dB]", 23.0, 23.456), ("is_", 3.0, None), ("distance to FP", None, 7.891)]
    assert len(lines) == 5


def test_what_to_know_first():
    assert TWO.statements[0] == "This is no reproduction: of <64> images."
    assert "meets its published value: distance to FP 0.00" in TWO.statements[1]
    assert ONE.statements == []
    assert TWO.notes == ["of few images", "published: FP: a paper", "published: <W4> & A8: a paper"]


def test_results_are_strict_json():
    def refuse(constant):
        raise AssertionError(constant)

    found = json.loads(json_text([ONE, TWO], {"machine": "abacus"}), parse_constant=refuse)
    assert (found["format"], found["version"], found["settings"]) == ("qdiff results", 1, {"machine": "abacus"})
    assert found["tables"] == {
        "one": {"title": "A model", "command": "", "deviations": []},
        "two": {"title": "Another model", "command": "python make", "deviations": ["of <64> images"]},
    }
    first, second = found["results"]["one"]
    assert first.pop("evaluation") == json.loads(json.dumps(asdict(RESULTS[0].evaluation)))
    none = {"source": "", "published": {}}
    sizes = {"size": 10_944_396, "fp32_size": 10_944_396, "seconds": {}}
    values = {"psnr": None, "mae": 0.0, "frechet": 1.234}
    assert first == {"name": "fp", "method": "FP", "command": RESULTS[0].command, **values, **sizes, **none}
    assert (second["psnr"], second["size"]) == (23.456, 1_500_000)
    _, guided = found["results"]["two"]
    assert guided["recognised"] == 0.25 and guided["published"] == {"psnr": 23.0, "is_": 3.0}
