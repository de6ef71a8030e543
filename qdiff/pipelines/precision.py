"""Floating-point precision of a network's arithmetic."""

from contextlib import AbstractContextManager, nullcontext

import torch

from qdiff.errors import UserError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolved(name: str, device: torch.device) -> str:
    """Return the precision that a name means on a device: "full" (float32), "bf16" or "fp16".

    Args:
        name: one of these, or "autocast": on CUDA bfloat16, or float16 if the GPU does not support it; else float32.
        device: the network's device.

    Raises:
        UserError: float16 on a device other than CUDA.
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
    """Return a reusable context for a precision that `resolved` returned."""
    return nullcontext() if name == "full" else torch.autocast(device.type, DTYPES[name])
