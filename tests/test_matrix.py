"""The tool behind `make matrix`, on a suite of three tests."""

import os
import platform
import re
import sys

import pytest
import torch

from tests import matrix

SUITE = """
import os
import pytest

def test_threads():
    assert os.environ["OMP_NUM_THREADS"] == "3"

@pytest.mark.skip
def test_skipped(): ...

def test_other():
    assert {passes}
"""


@pytest.fixture(autouse=True)
def logs(tmp_path, monkeypatch):
    monkeypatch.setattr(matrix, "ROOT", tmp_path)
    monkeypatch.setattr(matrix, "LOGS", tmp_path / "logs")


@pytest.mark.parametrize(("passes", "status", "passed"), [(True, 0, "2"), (False, 1, "1, 1 failed")])
def test_a_cell(passes, status, passed, tmp_path, capsys):
    (tmp_path / "test_suite.py").write_text(SUITE.format(passes=passes))
    assert matrix.main(["oldest", "--threads", "3", "--use", f"oldest={sys.prefix}"]) == status
    *_, row = capsys.readouterr().out.splitlines()
    versions = f"{torch.__version__.partition('+')[0]} | {platform.python_version()}"
    assert re.fullmatch(re.escape(f"| {versions} | 3 | {passed} | ") + r"0:\d\d \|", row)
    assert (tmp_path / "logs" / "oldest-3.log").exists()


def test_a_suite_that_does_not_start_has_failed(tmp_path):
    assert matrix.counts(tmp_path / "missing.xml", 4) == (0, 1)


def test_what_is_not_there(tmp_path, capsys, monkeypatch):
    for words in (["2.9"], ["--use", f"oldest={tmp_path}"]):
        with pytest.raises(SystemExit):
            matrix.main(words)
        assert "oldest, 2.14, newest" in capsys.readouterr().err
    monkeypatch.setitem(os.environ, "PATH", "")
    with pytest.raises(SystemExit, match=r"python3\.10 is not on the PATH"):
        matrix.main(["oldest"])
