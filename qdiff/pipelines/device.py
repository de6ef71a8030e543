"""Where to compute."""

import torch

from qdiff.errors import UserError


def free_memory(device: torch.device) -> int | None:
    """Bytes free on a device with memory of its own; None for one that computes in the machine's."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def find_device(name: str) -> torch.device:
    """The device of `--device`; "auto" is cuda, else mps, else cpu. Raises UserError for one that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(name)
    there = {"cpu": 1, "mps": int(torch.backends.mps.is_available()), "cuda": torch.cuda.device_count()}
    if (device.index or 0) >= there[device.type]:
        raise UserError(f"--device {name} is not available on this machine: use --device auto")
    return device
