import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from qdiff.files.names import utf8_name


@pytest.mark.parametrize("name", ["plain", "日本", "two words"])
def test_names_in_utf8_stay_what_they_are(name, tmp_path):
    for path in (tmp_path / name, str(tmp_path / name)):
        with utf8_name(path) as same:
            assert same is path


@pytest.mark.parametrize("relative", [False, True])
def test_other_names_are_linked_to_as_long_as_they_are_needed(relative, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "bad\udcff"
    folder.mkdir()
    save_file({"x": torch.arange(3)}, folder / "x.safetensors")
    path = (folder.relative_to(tmp_path) if relative else folder) / "x.safetensors"
    with utf8_name(path) as link:
        str(link).encode()
        assert load_file(link)["x"].tolist() == [0, 1, 2]
    assert not link.parent.exists() and path.exists()


def test_what_is_missing_stays_missing(tmp_path):
    with pytest.raises((FileNotFoundError, SafetensorError)), utf8_name(tmp_path / "bad\udcff") as link:
        load_file(link)
