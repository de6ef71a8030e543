"""The device that a model computes on."""

import torch

from qdiff.errors import UserError
from qdiff.sampling.rank import Rank


def free_memory(device: torch.device) -> int | None:
    """Return the free memory of a device, bytes; None if it uses the host's memory."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def find_device(name: str) -> torch.device:
    """Return the device of a name; "auto" is cuda, else mps, else cpu.

    Of several processes on a machine, each gets another GPU where the name leaves it open.

    Raises:
        ValueError: neither "auto" nor a device of one of these kinds.
        UserError: this machine does not have it, or the environment contradicts itself; see `Rank`.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    available = {"cpu": 1, "mps": int(torch.backends.mps.is_available()), "cuda": torch.cuda.device_count()}
    try:
        device = torch.device(name)
        count = available[device.type]
    except (RuntimeError, TypeError, KeyError):
        raise ValueError(f"device must be auto, cpu, cuda, cuda:N or mps, not {name!r}") from None
    if (device.index or 0) >= count:
        raise UserError(f"--device {name} is not available on this machine: use --device auto")
    if device == torch.device("cuda") and not (rank := Rank.from_environment()).alone:
        return torch.device("cuda", rank.local % count)
    return device
