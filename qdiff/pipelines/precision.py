"""The floating-point numbers that a network computes with."""

from contextlib import AbstractContextManager, nullcontext

import torch

from qdiff.errors import UserError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolved(name: str, device: torch.device) -> str:
    """What `--precision` means on a device: "full" (float32), "bf16" or "fp16".

    Args:
        name: one of these, or "autocast": bfloat16 or, where the GPU has none, float16 on CUDA, float32 elsewhere.
        device: where the network is.

    Raises:
        UserError: float16 elsewhere than on CUDA.
    """
    cuda = device.type == "cuda"
    if name == "fp16" and not cuda:
        raise UserError(f"--precision fp16 needs CUDA, the device is {device}: use bf16 or full")
    if name != "autocast":
        return name
    if not cuda:
        return "full"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def precision_of(name: str, device: torch.device) -> AbstractContextManager:
    """A context, which may be entered again and again, of a precision as `resolved` names it."""
    return nullcontext() if name == "full" else torch.autocast(device.type, DTYPES[name])
