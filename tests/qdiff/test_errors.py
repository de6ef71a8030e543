"""Wording of messages."""

from qdiff.errors import first_of


def test_several_names():
    assert first_of(["a"]) == "'a'"
    assert first_of(["a", "b"]) == "'a' and 1 more"
    assert first_of({"b": 1, "a": 2, "c": 3}) == "'b' and 2 more"
