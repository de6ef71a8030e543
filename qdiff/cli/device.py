"""Where to compute."""

import torch

from qdiff.errors import UserError


def find_device(name: str) -> torch.device:
    """The device of `--device`; "auto" is cuda, else mps, else cpu. Raises UserError for one that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(name)
    there = {"cpu": 1, "mps": int(torch.backends.mps.is_available()), "cuda": torch.cuda.device_count()}
    if (device.index or 0) >= there[device.type]:
        raise UserError(f"--device {name} is not available on this machine: use --device auto")
    return device
