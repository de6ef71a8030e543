"""Quantizes one layer in closed form, from the moments of its inputs."""

from dataclasses import dataclass

import torch
from torch import Tensor

from qdiff.closed_form.gptq import Grid, damped, fitted_target, rounded
from qdiff.closed_form.moments import Moments
from qdiff.quant_layer import Quantizer, QuantModule, SplitQuantizer, UniformAffineQuantizer
from qdiff.ranges import range_weighted


@dataclass(frozen=True)
class LayerError:
    """Weighted mean squared error of a layer's output, quantized to nearest and in closed form, and that of zero.

    If the layer has a bias, each with the bias that leaves no mean error.
    """

    nearest: float
    solved: float
    power: float


def solve_layer(layer: QuantModule, moments: Moments, *, mismatch: bool) -> LayerError:
    """Choose codes, step sizes, zero points and bias of a layer.

    Args:
        layer: rounded to nearest, with its full-precision weight.
        moments: of its inputs in the quantized network and its outputs in full precision; centred if it has a bias.
        mismatch: aim at these outputs, so that the weights make up for errors of the inputs too; else at the weights.
    """
    groups = layer.operation.groups
    weight = matrices(layer.fp_weight.detach(), groups)  # (G, K, O / G)
    before = matrices(layer.quantized_weight(), groups)
    quantizers = layer.weight_quantizer.quantizers()
    inputs = weight.shape[1]
    channels = layer.fp_weight.shape[1]
    slices = tuple(size * inputs // channels for size in layer.split or (channels,))
    hessian, missing = moments.shrunk, moments.trust[:, None, None] * moments.missing * mismatch
    found = [_solve(*group, quantizers, slices) for group in zip(weight, hessian, missing)]
    grids = [grid for _, grid in found]
    steps = torch.stack([steps for steps, _ in found])
    after = torch.stack([grid.values(s) for grid, s in zip(grids, steps)])
    offset = torch.stack([s + grid.expanded(grid.zero_point - grid.lo) for grid, s in zip(grids, steps)])
    _set_quantizer(layer, grids)
    layer.set_codes(_weight(offset, layer.fp_weight))
    if moments.centred and layer.bias is not None:
        predicted = (moments.mean_x[:, None] @ after).squeeze(1)
        layer.set_bias((moments.mean_y - predicted).flatten())
    return LayerError(_error(before, moments), _error(after, moments), moments.power)


def _solve(
    weight: Tensor,
    hessian: Tensor,
    missing: Tensor,
    quantizers: list[UniformAffineQuantizer],
    slices: tuple[int, ...],
) -> tuple[Tensor, Grid]:
    """Return codes less zero points, (K, O), and their grid, for the weight of a group, (K, O).

    Args:
        weight, hessian, missing: as for `fitted_target`.
        quantizers: of the slices; give the spec, and the range where all outputs share one.
        slices: inputs of each.
    """
    damped_hessian = damped(hessian)
    target = fitted_target(weight, damped_hessian, missing)
    spec = quantizers[0].spec
    lo, hi = spec.bounds
    if spec.per_channel:
        parts = zip(target.split(slices), hessian.diagonal().split(slices))
        ranges = [range_weighted(part.T, diagonal, spec.bits, spec.symmetric) for part, diagonal in parts]
    else:
        ranges = [(q.delta.expand(weight.shape[1]), q.zero_point.expand(weight.shape[1])) for q in quantizers]
    delta, zero_point = (torch.stack(values) for values in zip(*ranges))
    return rounded(target, damped_hessian, Grid(delta, zero_point, slices, lo, hi), refit=spec.per_channel)


def matrices(weight: Tensor, groups: int) -> Tensor:
    """Return a layer's weight, (O, C, ...), as a matrix for each group, (G, K, O / G)."""
    return weight.flatten(1).unflatten(0, (groups, -1)).transpose(1, 2).contiguous()


def _weight(matrices: Tensor, like: Tensor) -> Tensor:
    """Return (G, K, O / G) in the shape of a layer's weight."""
    # in the layout of a loaded file, so that both compute the same
    return matrices.transpose(1, 2).reshape(like.shape).contiguous()


def _set_quantizer(layer: QuantModule, grids: list[Grid]) -> None:
    """Give a layer the step sizes and zero points of its groups."""
    old = layer.weight_quantizer
    delta, zero_point = (torch.cat(parts, dim=1) for parts in zip(*((g.delta, g.zero_point) for g in grids)))
    new = []
    for q, d, z in zip(old.quantizers(), delta, zero_point):
        few, shape = slice(q.delta.numel()), q.delta.shape  # one number only where all outputs share it
        new.append(UniformAffineQuantizer(d[few].reshape(shape), z[few].reshape(shape), q.spec))
    quantizer: Quantizer = SplitQuantizer(new, old.sizes) if old.sizes else new[0]
    layer.weight_quantizer = quantizer


def _error(weight: Tensor, moments: Moments) -> float:
    """Return E |y - Q x|^2 of a quantized weight Q, (G, K, O / G)."""
    cross = moments.missing + moments.hessian @ moments.matrix  # of x and y
    return (moments.power - 2 * (cross * weight).sum() + (weight * (moments.hessian @ weight)).sum()).item()
