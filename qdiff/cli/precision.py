"""The floating-point numbers that a network computes with."""

from contextlib import AbstractContextManager, nullcontext

import torch

from qdiff.errors import UserError


def precision_of(name: str, device: torch.device) -> AbstractContextManager:
    """A context of `--precision`, which may be entered again and again.

    Args:
        name: "full" (float32), "autocast" (bfloat16 or, where the GPU has none, float16 on CUDA, float32 elsewhere),
            "bf16" or "fp16".
        device: where the network is.

    Raises:
        UserError: float16 elsewhere than on CUDA.
    """
    cuda = device.type == "cuda"
    if name == "fp16" and not cuda:
        raise UserError(f"--precision fp16 needs CUDA, the device is {device}: use bf16 or full")
    if name == "full" or (name == "autocast" and not cuda):
        return nullcontext()
    half = name == "fp16" or (name == "autocast" and not torch.cuda.is_bf16_supported())
    return torch.autocast(device.type, torch.float16 if half else torch.bfloat16)
