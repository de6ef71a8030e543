"""`results.json`: its schema, and files that do not have it."""

import json
import math
from dataclasses import replace

import pytest

from qdiff.errors import UserError
from qdiff.evaluation.record import Evaluation, ImagesRecord, ModelRecord, NetworkRecord, Row, SamplingRecord
from qdiff.evaluation.record_file import read_evaluation, to_json, write_evaluation

EVALUATION = Evaluation(
    ImagesRecord("runs/ä", "images", 64, (3, 8, 8), "a" * 64, "nearest"),
    ImagesRecord("r.npz", "statistics", None, None, "b" * 64, None),
    None,
    SamplingRecord("DDIM(steps=20, eta=0.0)", 20, 20, 0.0, None, 41, "W4A8", "full"),
    (NetworkRecord("features", "Inception", "c" * 64, True),),
    (
        Row("fid", "FID, 64 images", "", 4.5, "torch-fidelity 0.4.0", 4.22),
        Row("psnr", "PSNR", "dB", None, "qdiff 0.1", None, "higher is closer", ".2f"),
    ),
    {"lpips": "no weights"},
    ("note",),
    {"versions": "torch 2"},
    ModelRecord("configs/m.yml", 1000, 750, 1.5e9, 3 * 10**9),
)


def edited(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def refusal(path) -> str:
    with pytest.raises(UserError) as caught:
        read_evaluation(path)
    assert "\n" not in str(caught.value) and "results.json'" in str(caught.value)
    return str(caught.value)


@pytest.fixture
def path(tmp_path):
    write_evaluation(tmp_path / "results.json", EVALUATION)
    return tmp_path / "results.json"


def test_an_evaluation_survives_its_file(path):
    assert read_evaluation(path) == EVALUATION
    assert EVALUATION.values == {"fid": 4.5, "psnr": math.inf}


def test_the_schema():
    """A reader without this package relies on these names and types."""

    def refuse(constant):
        raise AssertionError(constant)

    content = json.loads(to_json(EVALUATION), parse_constant=refuse)
    assert (content["format"], content["version"]) == ("qdiff evaluation", 2)
    images = {"source", "kind", "number", "shape", "sha256", "rounding", "files"}
    assert {key: set(content[key]) for key in ("images", "reference")} == {"images": images, "reference": images}
    sampling = {"sampler", "steps", "nfe", "eta", "scale", "seed", "bits", "precision", "weights"}
    assert set(content["sampling"]) == sampling
    assert set(content["networks"][0]) == {"role", "name", "sha256", "standard"}
    assert set(content["rows"][0]) == {"metric", "name", "unit", "value", "by", "published", "meaning", "spec"}
    assert set(content["model"]) == {"source", "parameters", "file_bytes", "step_bops", "bops"}
    others = {"full_precision", "left_out", "model", "notes", "settings"}
    assert set(content) == {"format", "version", "images", "reference", "sampling", "networks", "rows"} | others
    assert content["images"]["shape"] == [3, 8, 8] and content["rows"][1]["value"] is None


def test_version_1_did_not_know_the_model(path):
    edited(path, lambda content: content.update(version=1) or content.pop("model"))
    assert read_evaluation(path) == replace(EVALUATION, model=None)


def test_bits_per_parameter():
    assert EVALUATION.model.bits == 6 and replace(EVALUATION.model, file_bytes=None).bits is None


def test_a_row_as_text():
    fid, psnr = EVALUATION.rows
    assert (fid.title, fid.cell) == ("FID, 64 images", "4.500")
    assert (psnr.title, psnr.cell) == ("PSNR [dB]", "∞")
    assert replace(psnr, value=23.456).cell == "23.46" and replace(fid, value=0.254, spec=".0%").cell == "25%"


def test_whole_numbers_stand_for_numbers(path):
    edited(path, lambda content: content["rows"][0].update(value=5))
    assert read_evaluation(path).values["fid"] == 5.0


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda c: c.update(version=3), "has version 3, this program reads 1 and 2: evaluate the images again"),
        (lambda c: c.pop("version"), "has version None"),
        (lambda c: c.update(format="other"), "is not a results file"),
        (lambda c: c.pop("rows"), "file.rows is missing"),
        (lambda c: c.update(more=1), "file.more is unknown"),
        (lambda c: c["rows"][1].pop("unit"), "file.rows[1].unit is missing"),
        (lambda c: c["rows"][0].update(value="4.5"), "file.rows[0].value is '4.5', not float"),
        (lambda c: c["images"].update(number=1.5), "file.images.number is 1.5, not int"),
        (lambda c: c["images"].update(shape=[3, None, 8]), "file.images.shape[1] is None, not int"),
        (lambda c: c.update(sampling=[]), "file.sampling is [], not a section"),
        (lambda c: c.update(left_out=[]), "file.left_out is [], not Mapping"),
        (lambda c: c["left_out"].update(lpips=3), "file.left_out.lpips is 3, not str"),
        (lambda c: c["rows"][0].update(value=10**400), "file.rows[0].value is 1000"),
        (lambda c: c.update(version=True), "has version True"),
        (lambda c: c["rows"][0].update(value=math.nan), "file.rows[0].value is nan"),
    ],
)
def test_other_contents_are_refused(edit, said, path):
    edited(path, edit)
    assert said in refusal(path)


@pytest.mark.parametrize("text", ["", "[]", "{", "3", '{"settings": {}, "results": {}}'])
def test_other_files_are_refused(text, path):
    path.write_text(text)
    refusal(path)
    path.unlink()
    assert "cannot read" in refusal(path)


def test_a_failed_write_leaves_the_old_file(path, monkeypatch):
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        write_evaluation(path, replace(EVALUATION, rows=(Row("a", "A", "", math.nan, "x"),)))
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
