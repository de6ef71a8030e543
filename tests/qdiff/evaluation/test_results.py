import json

from qdiff.evaluation.results import json_text, markdown_table, text_table
from tests.qdiff.evaluation.results import ALL_TITLES, CELLS, ONE, RESULTS, SHOWN, TITLES, TWO


def test_text_table_is_aligned():
    lines = text_table(ONE).splitlines()
    assert len(lines) == 3
    for column in range(len(TITLES)):
        starts = {line.index(cell) for line, cell in zip(lines, [TITLES[column], *(row[column] for row in CELLS)])}
        assert len(starts) == 1


def test_markdown_table():
    rows = [line.strip("| ").split(" | ") for line in markdown_table(ONE).splitlines() if line.startswith("|")]
    assert rows == [TITLES, ["---"] * len(TITLES), *CELLS]
    assert "not FID" in markdown_table(ONE)


def test_what_columns_show_is_named_where_it_is_known():
    assert SHOWN in markdown_table(TWO).splitlines()
    assert "Columns" not in markdown_table(ONE)


def test_categories_have_a_column_where_there_are_some():
    assert [column.title for column in TWO.columns] == ALL_TITLES
    lines = text_table(TWO).splitlines()
    assert " 100% " in lines[1] and " 25% " in lines[2]


def test_results_are_strict_json():
    def refuse(constant):
        raise AssertionError(constant)

    found = json.loads(json_text([ONE, TWO], {"machine": "abacus"}), parse_constant=refuse)
    assert found["settings"] == {"machine": "abacus"}
    assert found["results"]["one"] == [
        {
            "method": "FP",
            "command": RESULTS[0].command,
            "psnr": None,
            "mae": 0.0,
            "frechet": 1.234,
            "recognised": None,
            "size": 10_944_396,
            "fp32_size": 10_944_396,
        },
        {
            "method": "<W4> & A8",
            "command": RESULTS[1].command,
            "psnr": 23.456,
            "mae": 7.891,
            "frechet": 12.345,
            "recognised": None,
            "size": 1_500_000,
            "fp32_size": 10_944_396,
        },
    ]
    assert [row["recognised"] for row in found["results"]["two"]] == [1.0, 0.25]
