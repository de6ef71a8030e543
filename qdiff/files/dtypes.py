"""Dtypes of tensors in checkpoints."""

import torch

# Dtypes of weights; float8_e8m0fnu holds only scales, and packed dtypes are not weights by themselves
FLOATS = {torch.float64, torch.float32, torch.float16, torch.bfloat16} | {
    getattr(torch, f"float8_{kind}") for kind in ("e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz")
}


def dtype_name(dtype: torch.dtype) -> str:
    """Return the short name of a dtype, such as "float16"."""
    return str(dtype).removeprefix("torch.")
