import json
import math
from dataclasses import replace

import pytest

from qdiff.analysis.tradeoff import check_keys, read_results, results_of
from qdiff.errors import UserError
from qdiff.evaluation.record import Row
from qdiff.evaluation.record_file import write_evaluation
from qdiff.evaluation.results import json_text
from tests.qdiff.evaluation.results import ONE, TWO
from tests.qdiff.evaluation.test_record_file import EVALUATION


def test_what_a_report_writes_is_read(tmp_path):
    (tmp_path / "results.json").write_text(json_text([ONE, TWO], {"machine": "abacus"}), encoding="utf-8")
    found = read_results([tmp_path / "results.json"])
    assert [(r.model, r.method) for r in found] == [(m, name) for m in ("one", "two") for name in ("FP", "<W4> & A8")]
    fp, w4, _, guided = found
    assert "psnr" not in fp.numbers, "it is infinite"
    assert (fp.numbers["bits"], fp.numbers["mae"], fp.numbers["size"]) == (32, 0, 10_944_396)
    assert w4.numbers["psnr"] == 23.456 and "recognised" not in w4.numbers and guided.numbers["recognised"] == 0.25
    assert w4.numbers["bits"] == pytest.approx(32 * 1_500_000 / 10_944_396)


def test_the_numbers_of_a_section_are_those_of_its_file(tmp_path):
    (tmp_path / "r.json").write_text(json_text([ONE], {}), encoding="utf-8")
    read, direct = read_results([tmp_path / "r.json"]), results_of(ONE)
    assert [r.numbers for r in read] == [r.numbers for r in direct]
    assert {r.model for r in direct} == {"A model"}


def test_other_numbers_of_a_row_can_be_shown_too(tmp_path):
    row = {"method": "W4", "size": 10, "fp32_size": 80, "bops": 1e9, "note": "text", "fid": None}
    (tmp_path / "r.json").write_text(json.dumps({"results": {"m": [row]}}), encoding="utf-8")
    (found,) = read_results([tmp_path / "r.json"])
    assert found.numbers == {"size": 10, "bits": 4, "bops": 1e9}
    check_keys("size", "bops", [found])
    with pytest.raises(UserError, match=r"--metric fid: the results have no such number: use one of size, bops, bits"):
        check_keys("fid", "bops", [found])
    with pytest.raises(UserError, match="did you mean bops"):
        check_keys("size", "bop", [found])


def test_evaluations_are_methods_named_by_their_files(tmp_path):
    unsaved = replace(EVALUATION, model=replace(EVALUATION.model, source="n.yml", file_bytes=None))
    for name, each in {"w4": EVALUATION, "w8": EVALUATION, "unsaved": unsaved}.items():
        write_evaluation(tmp_path / f"{name}.json", each)
    found = read_results([tmp_path / "w4.json", tmp_path / "w8.json", tmp_path / "unsaved.json"])
    assert [(r.model, r.method) for r in found] == [
        ("configs/m.yml", "w4"),
        ("configs/m.yml", "w8"),
        ("n.yml", "unsaved"),
    ]
    assert found[0].numbers == {"fid": 4.5, "size": 750, "bits": 6, "step_bops": 1.5e9, "bops": 3e9}
    assert found[2].numbers == {"fid": 4.5, "step_bops": 1.5e9, "bops": 3e9}
    assert found[0].titles == {"fid": "FID, 64 images", "psnr": "PSNR [dB]"}
    check_keys("fid", "bops", found)
    with pytest.raises(UserError, match="--cost size is not known of 'unsaved': evaluate the folder of its run"):
        check_keys("fid", "size", found)


def test_evaluations_of_other_protocols_are_not_drawn_together(tmp_path):
    write_evaluation(tmp_path / "a.json", EVALUATION)
    other = replace(EVALUATION, reference=replace(EVALUATION.reference, sha256="f" * 64))
    write_evaluation(tmp_path / "b.json", other)
    with pytest.raises(UserError, match="FILE: 'runs/ä' was evaluated with another reference"):
        read_results([tmp_path / "a.json", tmp_path / "b.json"])
    elsewhere = replace(other, model=replace(other.model, source="n.yml"))
    write_evaluation(tmp_path / "b.json", elsewhere)
    assert len(read_results([tmp_path / "a.json", tmp_path / "b.json"])) == 2, "another model has a panel of its own"


def test_infinite_values_are_left_out(tmp_path):
    rows = (Row("psnr", "PSNR", "dB", None, "x"),)
    write_evaluation(tmp_path / "a.json", replace(EVALUATION, rows=rows, model=None))
    (found,) = read_results([tmp_path / "a.json"])
    assert EVALUATION.values["psnr"] == math.inf and (found.model, found.numbers) == ("unknown model", {})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is not valid JSON"),
        ("\xff", "is not valid JSON"),
        ("[]", "is not a results file"),
        ('{"format": "other"}', "is not a results file"),
        ('{"results": [1]}', "is not a results file"),
        ('{"results": {"m": [7]}}', "is not a results file"),
        ('{"results": {"m": [{"method": "W4", "psnr": 3}]}}', "is not a results file"),
        ('{"results": {"m": [{"size": 1, "fp32_size": 4}]}}', "is not a results file"),
        ('{"results": {"m": [{"method": "W4", "size": 1, "fp32_size": 0}]}}', "is not a results file"),
        ('{"results": {}}', "has no results"),
    ],
)
def test_another_file_is_refused(content, says, tmp_path):
    path = tmp_path / "r.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(
        UserError, match=rf"r\.json' {says}.*: give a results file of python -m qdiff evaluate, or the results\.json"
    ):
        read_results([path])


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*none\.json' \(No such file or directory\): give"):
        read_results([tmp_path / "none.json"])
    with pytest.raises(UserError, match=r"cannot read .*\(Is a directory\)"):
        read_results([tmp_path])
