import os

import pytest

from qdiff.errors import UserError
from qdiff.files import json_file
from qdiff.files.json_file import read_json


def refusal(path) -> str:
    with pytest.raises(UserError) as caught:
        read_json(path, "give another")
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert str(caught.value).endswith(": give another")
    return str(caught.value)


def test_what_is_json_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"ä": [1, null]}', encoding="utf-8")
    assert read_json(tmp_path / "a.json", "") == {"ä": [1, None]}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a": 1} {"b": 2}'])
def test_what_is_not_json_is_refused(content, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    assert "is not valid JSON" in refusal(path)


def test_what_is_no_file_is_refused(tmp_path, monkeypatch):
    assert "cannot read" in refusal(tmp_path / "none.json")
    assert "Is a directory" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "is not a file" in refusal(tmp_path / "pipe")
    monkeypatch.setattr(json_file, "LARGEST", 2**20)
    (tmp_path / "large").write_bytes(bytes(3 * 2**20))
    assert "has 3 MiB, which no results file has" in refusal(tmp_path / "large")
