from qdiff.files.tables import aligned, markdown


def test_columns_are_aligned():
    assert aligned([("a", "bc", "d"), ("1234", "5", "")]) == "a     bc  d\n1234  5"
    assert aligned([("one",)]) == "one"


def test_markdown():
    assert markdown(["a", "b"], [["1", "2"], ["3", "4"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n| 3 | 4 |"
