import json
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from qdiff.errors import UserError
from qdiff.files.atomic import PARTIAL
from qdiff.files.journal import Journal

JOB = {"settings": {"batch_size": 4, "rounding": {"iterations": 3, "lr": 0.01}, "steps": None}, "weights": "ab", "n": 1}
TENSORS = {
    "model.up.0.codes": torch.arange(12, dtype=torch.uint8).view(3, 4),
    "a.delta": torch.tensor(0.1),
    "strided": torch.arange(6.0).view(2, 3).T,
}


def refusal(folder, job) -> str:
    with pytest.raises(UserError) as caught:
        Journal(folder, job)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("folder", ["new", "bad\udcff"])
def test_what_was_recorded_is_read(folder, tmp_path):
    journal = Journal(tmp_path / folder / "journal", JOB)
    losses = {"before": 0.1 + 0.2, "after": 1e-300}
    journal.write("weights-000", TENSORS, losses)
    for reader in (journal, Journal(journal.folder, JOB)):
        tensors, info = reader.read("weights-000")
        assert tensors.keys() == TENSORS.keys()
        for key, x in TENSORS.items():
            assert (tensors[key].dtype, tensors[key].shape) == (x.dtype, x.shape)
            assert torch.equal(tensors[key], x)
        assert info == losses
    assert sorted(os.listdir(journal.folder)) == ["job.json", "weights-000.safetensors"]


def test_a_unit_without_numbers_or_tensors(tmp_path):
    journal = Journal(tmp_path, JOB)
    journal.write("ranges", {})
    assert journal.read("ranges") == ({}, {})
    assert journal.read("steps-000") is None


def test_a_unit_that_is_recorded_again(tmp_path):
    journal = Journal(tmp_path, JOB)
    for value in (1, 2):
        journal.write("u", {"x": torch.tensor(value)}, {"v": value})
    assert journal.read("u") == ({"x": torch.tensor(2)}, {"v": 2})


@given(st.floats(0, 1, exclude_max=True))
def test_a_record_cut_anywhere_counts_as_missing(tmp_path_factory, share):
    journal = Journal(tmp_path_factory.mktemp("journal"), JOB)
    journal.write("u", TENSORS, {"v": 1})
    file = journal.folder / "u.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    assert journal.read("u") is None


@pytest.mark.parametrize("content", [b"\0" * 4096, b"rubbish" * 100])
def test_a_record_of_rubbish_counts_as_missing(content, tmp_path):
    journal = Journal(tmp_path, JOB)
    (tmp_path / "u.safetensors").write_bytes(content)
    assert journal.read("u") is None


@pytest.mark.parametrize("metadata", [None, {"other": "{}"}, {"info": "{"}])
def test_a_record_that_lacks_its_numbers_counts_as_missing(metadata, tmp_path):
    journal = Journal(tmp_path, JOB)
    save_file(TENSORS | {"strided": torch.zeros(1)}, tmp_path / "u.safetensors", metadata)
    assert journal.read("u") is None


def test_halves_of_a_killed_process_are_removed(tmp_path):
    Journal(tmp_path, JOB).write("u", TENSORS)
    (tmp_path / f"v.safetensors.4711{PARTIAL}").write_bytes(b"half")
    (tmp_path / f"job.json.4711{PARTIAL}").write_bytes(b"half")
    assert Journal(tmp_path, JOB).read("u")
    assert sorted(os.listdir(tmp_path)) == ["job.json", "u.safetensors"]


def test_the_same_job_after_a_trip_through_json(tmp_path):
    Journal(tmp_path, JOB | {"classes": (1, 2), 5: "five"})
    Journal(tmp_path, JOB | {"classes": [1, 2], "5": "five"})


@pytest.mark.parametrize(
    ("other", "parts"),
    [
        ({"weights": "cd"}, ["other weights", "ab there", "cd now"]),
        ({"n": 2, "weights": "cd"}, ["other n, weights", "1 there", "2 now"]),
        ({"settings": {}}, ["other settings", "'batch_size': 4", "{} now"]),
        ({"data": "new"}, ["other data", "None there", "new now"]),
    ],
)
def test_another_job_is_refused_and_nothing_is_touched(other, parts, tmp_path):
    Journal(tmp_path, JOB).write("u", TENSORS)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    line = refusal(tmp_path, JOB | other)
    for part in (*parts, str(tmp_path), "give another folder"):
        assert part in line
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_job_that_depends_on_less_is_another_one(tmp_path):
    Journal(tmp_path, JOB)
    assert "other n (" in refusal(tmp_path, {key: value for key, value in JOB.items() if key != "n"})


@pytest.mark.parametrize("content", ["", '{"n": 1', "[]", "null"])
def test_a_damaged_description(content, tmp_path):
    (tmp_path / "job.json").write_text(content)
    assert f"job.json' is damaged: delete '{tmp_path}' to start afresh" in refusal(tmp_path, JOB)


def test_the_description_is_for_people_too(tmp_path):
    Journal(tmp_path, JOB)
    assert json.loads((tmp_path / "job.json").read_text()) == JOB
