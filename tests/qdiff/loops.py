"""Quantization of single numbers, written from the definition, and strategies for what to quantize."""

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

F32 = np.float32
WIDTH = st.floats(-1000, 1000, width=32, allow_subnormal=False)
ROWS = hnp.arrays(F32, st.tuples(st.integers(1, 4), st.integers(1, 12)), elements=WIDTH).map(torch.from_numpy)
BITS = st.sampled_from([2, 3, 4, 8])


def quantize_number(x: F32, delta: F32, zero_point: F32, lo: int, hi: int) -> F32:
    """One number, written from the definition."""
    code = min(max(np.rint(x / delta) + zero_point, lo), hi)
    return F32(code - zero_point) * delta


def quantize_loop(x: Tensor, delta: Tensor, zero_point: Tensor, lo: int, hi: int) -> list[F32]:
    d, z = (v.expand_as(x).flatten().numpy() for v in (delta, zero_point))
    return [quantize_number(v, d[i], z[i], lo, hi) for i, v in enumerate(x.flatten().numpy())]


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
