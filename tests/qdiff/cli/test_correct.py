"""`python -m qdiff correct`: a correction for a finished run, and what it prints."""

from pathlib import Path

import pytest

from qdiff.correction.file import read_correction, write_correction
from tests.command_line import qdiff, refusal
from tests.qdiff.correction.tables import make_table
from tests.tiny import sample_script, write_tiny

pytestmark = pytest.mark.usefixtures("one_thread")
RUN = "--timesteps 3 --eta 0.5 --max_images 1 --batch_size 2 --device cpu"
PTQ = "--ptq --weight_bit 4 --quant_act --quant_mode linear --cali_st 2 --cali_n 2"


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    config = write_tiny(folder)
    for name, line in (("w4a8", f"{RUN} {PTQ}"), ("fp", RUN)):
        ended = sample_script("--config", config, "-l", folder / name, *line.split())
        assert ended.status == 0, ended
    return folder


def test_a_fit_for_a_run_serves_its_command(runs):
    ended = qdiff("correct", runs / "w4a8", "--n", 8, "--device", "cpu")
    assert (ended.status, ended.err) == (0, ""), ended
    file = runs / "w4a8" / "correction.safetensors"
    assert "correction: ptqd fit on 8 images, 112 network calls" in ended.out  # 4 steps, as 3 do not divide 1000
    again = qdiff("correct", file)
    assert again.out in ended.out
    line = f"{RUN} {PTQ} --correct {file}"
    ended = sample_script("--config", runs / "tiny.yml", "-l", runs / "corrected", *line.split())
    assert ended.status == 0, ended
    auto = sample_script("--config", runs / "tiny.yml", "-l", runs / "auto", *f"{RUN} {PTQ} --correct auto".split())
    assert auto.status == 0, auto
    assert read_correction(file).made_for == read_correction(runs / "auto" / "correction.safetensors").made_for


def test_another_file_fit_and_parts(runs, tmp_path):
    line = ["--n", 4, "--fit", "trajectory", "--parts", "bias", "-o", tmp_path / "c.safetensors", "--device", "cpu"]
    assert qdiff("correct", runs / "w4a8", *line).status == 0
    table = read_correction(tmp_path / "c.safetensors")
    assert table.fit == "trajectory" and table.provenance["parts"] == ["bias"]
    assert table.parts["slope"].note == "not asked for"


def test_a_plan(runs, tmp_path):
    ended = qdiff("correct", runs / "w4a8", "-o", tmp_path / "c.safetensors", "--dry_run", "--device", "cpu")
    assert ended.status == 0 and "ptqd fit on 64 images" in ended.out
    assert not [*tmp_path.iterdir()]


def test_what_is_shown(tmp_path):
    write_correction(tmp_path / "c.safetensors", make_table("bias"))
    lines = qdiff("correct", tmp_path / "c.safetensors").out.splitlines()
    assert lines[0].endswith("ptqd fit on 8 images")
    assert "bias         on, removes 50 +- 10 % of the held-out error" in lines
    assert "slope        off, removes 50 +- 10 % of the held-out error" in lines
    assert lines[-1].split()[0] == "100" and lines[-1].endswith("0.4000 +- 0.0784")


def test_refusals(runs, tmp_path):
    assert "in full precision" in refusal_after_plan(runs / "fp")
    assert "not the configuration of a run" in refusal("correct", tmp_path)
    assert "is a folder" in refusal("correct", runs / "w4a8", "-o", tmp_path)
    assert "cannot read" in refusal("correct", tmp_path / "none")
    assert "not a whole safetensors file" in refusal("correct", runs / "tiny.yml")
    write_correction(tmp_path / "c.safetensors", make_table())
    line = ["correct", runs / "w4a8", "-o", tmp_path / "c.safetensors", "--device", "cpu"]
    assert "was fitted with other" in refusal_after_plan(*line[1:])


def refusal_after_plan(*words: object) -> str:
    ended = qdiff("correct", *words, "--n", 4, "--device", "cpu")
    assert ended.status == 2 and ended.err.count("\n") == 1
    return ended.err
