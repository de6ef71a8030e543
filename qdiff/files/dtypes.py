"""Types of the numbers in checkpoints."""

import torch

# What float32 can hold the values of; scales without values (float8_e8m0fnu) and packed types are not among them
FLOATS = {torch.float64, torch.float32, torch.float16, torch.bfloat16} | {
    getattr(torch, f"float8_{kind}") for kind in ("e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz")
}


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a type as people write it, such as "float16"."""
    return str(dtype).removeprefix("torch.")
