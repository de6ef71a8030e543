"""Small tables of corrections."""

from dataclasses import replace

import torch

from qdiff.correction.parts import PARTS, Part
from qdiff.correction.table import CorrectionTable


def make_table(*on: str, **changes) -> CorrectionTable:
    """Three steps, two channels, and the parts that are on."""
    generator = torch.Generator().manual_seed(1)
    slope, bias = torch.rand(2, 3, 2, generator=generator, dtype=torch.float64)
    std = torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64)
    table = CorrectionTable(
        fit="ptqd",
        timesteps=(900.0, 500.0, 100.0),
        log_snr=(-4.0, 0.0, 3.0),
        slope=slope,
        slope_error=slope / 10,
        bias=bias,
        bias_error=bias / 10,
        std=std,
        std_error=std / 10,
        parts={name: Part(name in on, 0.5, 0.1) for name in PARTS},
        made_for={"network": "abc", "sampler": "DDIM, eta 0.0"},
        provenance={"images": 8},
    )
    return replace(table, **changes)
