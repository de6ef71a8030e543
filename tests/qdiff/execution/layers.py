"""Quantized layers with inputs whose codes are the same however they are rounded."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qdiff.phases import PhaseQuantizer
from qdiff.policy import QuantSpec
from qdiff.quant_layer import QuantModule, SplitQuantizer, UniformAffineQuantizer, fit_quantizer

Act = tuple[float, int, int]  # step size, zero point, bits; asymmetric


def act_quantizer(delta: float, zero_point: int, bits: int, symmetric: bool = False) -> UniformAffineQuantizer:
    spec = QuantSpec(bits, symmetric=symmetric)
    return UniformAffineQuantizer(torch.tensor(delta), torch.tensor(float(zero_point)), spec)


def between_ties(q: UniformAffineQuantizer, shape: Sequence[int], seed: int = 0) -> Tensor:
    """Values within and beyond the range, at most 0.4 steps from one that a code has."""
    g = torch.Generator().manual_seed(seed)
    low, high = q.lo - int(q.zero_point), q.hi - int(q.zero_point)
    steps = torch.randint(low - 3, high + 4, tuple(shape), generator=g) + 0.8 * torch.rand(shape, generator=g) - 0.4
    return steps * q.delta


def quantized(
    layer: nn.Module,
    *phases: Sequence[UniformAffineQuantizer],
    weight_bits: int = 4,
    symmetric: bool = False,
    split: tuple[int, ...] | None = None,
) -> QuantModule:
    """The layer with random weights, uneven around zero, and the quantizers of its input, of each phase and slice."""
    g = torch.Generator().manual_seed(1)
    assert isinstance(layer.weight, nn.Parameter)
    layer.weight.data = torch.rand(layer.weight.shape, generator=g) - 0.3
    if isinstance(layer.bias, nn.Parameter):
        layer.bias.data = torch.randn(layer.bias.shape, generator=g)
    spec = QuantSpec(weight_bits, symmetric=symmetric, per_channel=True, range_search="minmax")
    made = QuantModule(layer, fit_quantizer(layer.weight.detach(), spec, split))
    of_phases = [SplitQuantizer(parts, split) if split else parts[0] for parts in phases]
    if of_phases:
        made.act_quantizer = PhaseQuantizer(of_phases) if len(of_phases) > 1 else of_phases[0]
    return made.requires_grad_(False)


def assert_close(found: Tensor, wanted: Tensor) -> None:
    """Equal but for rounding in float32."""
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-6 * float(wanted.abs().max()))
