"""What this machine and this build of PyTorch can compute with integers."""

from functools import lru_cache
from platform import machine

import torch

from qdiff.errors import UserError
from qdiff.execution.codes import HALF
from qdiff.execution.kernels import LinearKernel
from qdiff.integers import ActIntegers, WeightIntegers
from qdiff.operations import Linear

X86 = ("x86_64", "AMD64")
PAIR = 2 * 255  # the largest sum of two codes: without VNNI, products are added up in pairs, in int16
LARGEST = torch.iinfo(torch.int16).max // PAIR  # absolute value of a weight whose products never leave int16


def lacking() -> str | None:
    """Say what this machine lacks for integer operators of PyTorch, and what to do; None if nothing."""
    if machine() not in X86:
        return f"integers are computed on x86 processors, this one is {machine()}: use --backend onnxruntime"
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.onednn, "qconv_prepack")):
        return "this build of PyTorch has no oneDNN: install PyTorch from PyPI, or use --backend onnxruntime"
    return None


def check_machine() -> None:
    """Check that PyTorch has integer operators here. Raises UserError if it does not."""
    if missing := lacking():
        raise UserError(missing)


def has_bfloat16() -> bool:
    """Tell whether this processor has instructions for bfloat16 (AVX512-BF16, AMX), without which it is slow."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and torch.cpu._is_avx512_bf16_supported()


@lru_cache
def has_vnni() -> bool:
    """Tell whether products of bytes are added up in int32 by one instruction (AVX512-VNNI, AVX-VNNI, AMX).

    Others are correct but slower; there, oneDNN adds up pairs in int16, which saturates for weights above `LARGEST`, so
    that layers with such weights have to stay in floating point. This is tried out with the largest weights.
    """
    weight = WeightIntegers(
        torch.full((1, 64), 127, dtype=torch.int8), torch.zeros(1, dtype=torch.int32), torch.ones(1)
    )
    act = ActIntegers(1.0, 0, 8)
    codes = torch.full((1, 64), act.top - HALF, dtype=torch.int8)
    return LinearKernel(Linear(), weight, None, act)(codes, act).item() == 64 * 127 * act.top
