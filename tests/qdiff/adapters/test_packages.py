"""Another package under the name of a family."""

import sys
from unittest import mock

import pytest

from qdiff import adapters
from qdiff.adapters import adapter_of, check_packages
from qdiff.errors import UserError


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """A folder with an `ldm` before ours in the path, in a process that has imported none yet."""
    (tmp_path / "ldm").mkdir()
    (tmp_path / "ldm" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with mock.patch.dict(sys.modules):
        for name in [name for name in sys.modules if name.partition(".")[0] == "ldm"]:
            del sys.modules[name]
        yield tmp_path


@pytest.fixture
def broken(monkeypatch):
    """An adapter that imports what a package lacks."""
    monkeypatch.setitem(adapters.FAMILIES, "ldm", "ldm.missing")


def test_own_packages_are_right():
    check_packages()


def test_the_other_package_is_named(foreign, broken):
    line = f"'{foreign}/ldm' hides this program's own package 'ldm': take '{foreign}' out of PYTHONPATH"
    for call in (check_packages, lambda: adapter_of("ldm")):
        with pytest.raises(UserError) as caught:
            call()
        assert str(caught.value).startswith(line) and "\n" not in str(caught.value)
    assert adapter_of("ddim").family == "ddim", "it does not matter there"


def test_other_imports_that_fail_stay_what_they_are(broken):
    with pytest.raises(ModuleNotFoundError, match=r"ldm\.missing"):
        adapter_of("ldm")
