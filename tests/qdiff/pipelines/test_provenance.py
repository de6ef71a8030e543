"""Finished files are taken by the job that made them alone."""

from pathlib import Path

import pytest

from qdiff.errors import UserError
from qdiff.pipelines.provenance import check_provenance

STORED = {"steps": [1, 2], "weights": "abc", "data": "known to the file alone"}


def test_tuples_are_lists_and_what_the_file_has_besides_does_not_count():
    check_provenance(Path("f"), STORED, {"steps": (1, 2), "weights": "abc"}, "fit", "fitted")


@pytest.mark.parametrize(
    ("changes", "named"), [({"steps": (2, 1)}, "steps"), ({"seed": 1, "weights": "x"}, "weights, seed")]
)
def test_another_job_is_refused(changes, named):
    with pytest.raises(UserError) as caught:
        check_provenance(Path("f"), STORED, {"steps": (1, 2), "weights": "abc"} | changes, "fit", "fitted")
    assert str(caught.value) == f"'f' was fitted with other {named}: give another folder, or delete it to fit again"
