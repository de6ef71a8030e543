import pytest
import torch

from qdiff.errors import UserError
from qdiff.pipelines.device import find_device


def test_devices(monkeypatch):
    assert find_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert find_device("auto") == torch.device("cpu")
    for name in ("cuda", "cuda:0", "mps"):
        with pytest.raises(UserError, match=f"--device {name} is not available .*--device auto"):
            find_device(name)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert find_device("auto") == find_device("mps") == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("auto") == torch.device("cuda")
    assert find_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(UserError, match="cuda:2 is not available"):
        find_device("cuda:2")


@pytest.mark.parametrize(("local", "expected"), [(0, 0), (1, 1), (2, 2), (3, 0)])
def test_each_process_on_a_machine_has_another_gpu(local, expected, monkeypatch):
    """Where the name leaves it open; where a cluster shows a process its own GPU only, that is 0."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    for name, value in {"RANK": 4 + local, "WORLD_SIZE": 8, "LOCAL_RANK": local}.items():
        monkeypatch.setenv(name, str(value))
    assert find_device("auto") == find_device("cuda") == torch.device("cuda", expected)
    assert find_device("cuda:1") == torch.device("cuda", 1)
    assert find_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "meta", "0", ""])
def test_a_name_that_is_no_device(name):
    with pytest.raises(ValueError, match=f"device must be auto, cpu, cuda, cuda:N or mps, not '{name}'"):
        find_device(name)
