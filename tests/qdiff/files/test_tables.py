import pytest

from qdiff.files.tables import aligned, markdown, with_prefix


def test_columns_are_aligned():
    assert aligned([("a", "bc", "d"), ("1234", "5", "")]) == "a     bc  d\n1234  5"
    assert aligned([("one",)]) == "one"


def test_markdown():
    assert markdown(["a", "b"], [["1", "2"], ["3", "4"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n| 3 | 4 |"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (999.96, "1 k"),
        (1000, "1 k"),
        (123_456, "123.5 k"),
        (999_949, "999.9 k"),
        (999_951, "1 M"),
        (6_221_856_768, "6.222 G"),
        (6_371_181_330_432, "6.371 T"),
        (2 * 10**18, "2 E"),
    ],
)
def test_numbers_with_a_prefix(number, text):
    assert with_prefix(number) == text
