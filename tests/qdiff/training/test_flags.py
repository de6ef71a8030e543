"""Command lines of the training scripts: jobs that they describe, and one-line refusals."""

from pathlib import Path

import pytest

from qdiff.cli.parser import parse
from qdiff.training.flags import job_of, training_parser
from qdiff.training.job import TrainingJob
from tests.command_line import SCRIPTS, script

FILES = "--config c.yml --data d.npz --out w.safetensors"


def job(line: str) -> TrainingJob:
    return job_of(parse(training_parser("train_ddim.py", "Train.", "the weights"), line.split()))


def test_defaults():
    assert job(FILES) == TrainingJob(
        Path("c.yml"), Path("d.npz"), Path("runs/train_ddim"), Path("w.safetensors"), None, 0, 1
    )


def test_every_flag_is_a_field_of_the_job():
    found = job(f"{FILES} --run r --init i.safetensors --seed 3 --devices 2")
    assert found == TrainingJob(
        Path("c.yml"), Path("d.npz"), Path("r"), Path("w.safetensors"), Path("i.safetensors"), 3, 2
    )


@pytest.mark.parametrize("name", sorted(path.name for path in SCRIPTS.glob("train_*.py")))
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "--data is missing: add --data FILE"),
        ("--data d.npz", "--out is missing: add --out PATH"),
        ("--data d.npz --out w --seeds 1", "unknown flag --seeds: did you mean --seed?"),
        ("--data d.npz --out w --seed -1", "--seed: '-1' is not a whole number in 0.."),
        ("--dat d.npz", "unknown flag --dat: did you mean --data?"),
    ],
)
def test_refusals_are_one_line_with_status_2(name, line, said):
    ended = script(name, *line.split())
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.startswith("error: ") and said in ended.err and ended.err.count("\n") == 1


def test_a_model_needs_its_configuration_and_a_latent_model_its_first_stage():
    assert "--config is missing" in script("train_ddim.py", *["--data", "d.npz", "--out", "w"]).err
    assert "--devices: '0' is not a whole number in 1.." in script("train_ddim.py", *f"{FILES} --devices 0".split()).err
    assert "--first_stage is missing: add --first_stage FILE" in script("train_ldm.py", *FILES.split()).err
