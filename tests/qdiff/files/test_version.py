"""The version that files name."""

from importlib.metadata import PackageNotFoundError, version

import pytest

from qdiff.checkpoints.quantized_file import read_quantized, write_quantized
from qdiff.files.version import own_version
from tests.qdiff.checkpoints.test_quantized_file import example


def test_the_installed_version():
    assert own_version() == version("qdiff")


@pytest.mark.parametrize("installed", [True, False])
def test_a_file_is_written_also_where_the_package_runs_from_its_folder(installed, tmp_path, monkeypatch):
    def missing(name: str):
        raise PackageNotFoundError(name)

    if not installed:
        monkeypatch.setattr("qdiff.files.version.version", missing)
    write_quantized(tmp_path / "q", example())
    assert read_quantized(tmp_path / "q").versions["qdiff"] == (version("qdiff") if installed else "unknown")
