"""Rounds a weight matrix in closed form, so that the layer's output changes least over its inputs.

GPTQ (Frantar et al. 2023, arXiv 2210.17323) as Babai's nearest plane, which gives the same codes from one Cholesky
factor (Chen et al. 2025, arXiv 2507.18553), coordinate descent on what it leaves (Behdin et al. 2023, QuantEase,
arXiv 2309.01885), and least-squares step sizes. Matrices of weights are transposed here, (K, O): a row for each of the
K inputs, so that a step works on contiguous memory.

The error of quantized weights Q against a target T is tr((T - Q)^T H (T - Q)), where H, (K, K), are the second moments
of the inputs.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

BLOCK = 64  # inputs after which the rest of the matrix is updated, in one product
DAMPING = 0.01  # of the mean of H's diagonal, which is added to it
SWEEPS = 1  # of coordinate descent
FACTORS = 0.5, 2.0  # a refitted step size is accepted within these multiples of the old one


@dataclass(frozen=True)
class Grid:
    """The values that weights may take: (code - zero_point) * delta.

    Args:
        delta, zero_point: (S, O), for each slice of the inputs and each output.
        slices: inputs of each of the S slices, which add up to K.
        lo, hi: smallest and largest code.
    """

    delta: Tensor
    zero_point: Tensor
    slices: tuple[int, ...]
    lo: int
    hi: int

    def expanded(self, per_slice: Tensor) -> Tensor:
        """Repeat (S, O) for the inputs of each slice, (K, O)."""
        return per_slice.repeat_interleave(torch.tensor(self.slices, device=per_slice.device), dim=0)

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest code less the zero point, each (K, O)."""
        return self.expanded(self.lo - self.zero_point), self.expanded(self.hi - self.zero_point)

    def values(self, steps: Tensor) -> Tensor:
        """Return the values of codes less zero points, (K, O)."""
        return steps * self.expanded(self.delta)


def damped(hessian: Tensor) -> Tensor:
    """Return H with 1 % of the mean of its diagonal added there, so that inputs that hardly vary do no harm."""
    mean = hessian.diagonal().mean().item()
    damping = DAMPING * mean if mean > 0 else 1.0
    return hessian + damping * torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)


def gptq(target: Tensor, hessian: Tensor, grid: Grid) -> Tensor:
    """Round inputs one after the other, those with the largest moments first; later ones make up for the errors.

    Args:
        target: T, (K, O).
        hessian: H, (K, K), positive definite.
        grid: the values that weights may take.

    Returns:
        codes less zero points, (K, O), integers in float dtype.
    """
    # With H = L L^T the error is |L^T (T - Q)|^2, whose row i holds no input before i. So the last input is rounded
    # first, and each to the value nearest to what makes its row zero.
    order = hessian.diagonal().argsort(descending=True).flip(0)
    lower = torch.linalg.cholesky(hessian[order][:, order])
    lower = lower / lower.diagonal()
    wanted, target = target[order], target[order]
    delta = grid.expanded(grid.delta)[order]
    low, high = (bound[order] for bound in grid.bounds)
    found = torch.empty_like(target)
    for end in range(len(target), 0, -BLOCK):
        block = slice(max(0, end - BLOCK), end)
        parts = (x[block] for x in (wanted, target, delta, low, high, found))
        errors = _round_block(lower[block, block], *parts)
        wanted[: block.start].addmm_(lower[block, : block.start].T, errors)
    steps = torch.empty_like(found)
    steps[order] = found
    return steps


def _round_block(
    lower: Tensor, wanted: Tensor, target: Tensor, delta: Tensor, low: Tensor, high: Tensor, found: Tensor
) -> Tensor:
    """Round a block of inputs into `found`, the last first; return their errors. `wanted` is changed."""
    errors = torch.empty_like(target)
    for j in reversed(range(len(target))):
        torch.div(wanted[j], delta[j], out=found[j]).round_().clamp_(low[j], high[j])
        torch.addcmul(target[j], found[j], delta[j], value=-1, out=errors[j])
        wanted[:j].addr_(lower[j, :j], errors[j])
    return errors


def descend(target: Tensor, hessian: Tensor, grid: Grid, steps: Tensor, sweeps: int = SWEEPS) -> Tensor:
    """Choose the best code for one input after the other, given all others; the error never grows.

    Args, Returns:
        as `gptq`; `steps` are codes less zero points to begin with, `sweeps` the passes over all inputs.
    """
    delta, (low, high) = grid.expanded(grid.delta), grid.bounds
    steps = steps.clone()
    error = target - steps * delta
    to_steps = 1 / (hessian.diagonal()[:, None] * delta)
    for _ in range(sweeps):
        for start in range(0, len(target), BLOCK):
            block = slice(start, start + BLOCK)
            before = steps[block].clone()
            _descend_block(
                steps[block],
                hessian[block] @ error,
                hessian[block, block],
                *(x[block] for x in (to_steps, delta, low, high)),
            )
            error[block] -= (steps[block] - before) * delta[block]
    return steps


def _descend_block(
    steps: Tensor, gradient: Tensor, hessian: Tensor, to_steps: Tensor, delta: Tensor, low: Tensor, high: Tensor
) -> None:
    """Choose the codes of a block of inputs in place; `gradient`, H (T - Q), is changed."""
    for j, code in enumerate(steps):
        best = torch.addcmul(code, gradient[j], to_steps[j]).round_().clamp_(low[j], high[j])
        if j + 1 < len(steps):
            gradient[j + 1 :].addr_(hessian[j + 1 :, j], (best - code).mul_(delta[j]), alpha=-1)
        steps[j] = best


def refitted(target: Tensor, hessian: Tensor, grid: Grid, steps: Tensor) -> Grid:
    """Return the grid with the step sizes of least error for these codes, slice by slice.

    Args:
        target, hessian, grid, steps: as for `descend`.
    """
    delta, start = grid.delta.clone(), 0
    for i, size in enumerate(grid.slices):
        part = slice(start, start + size)
        error = target - steps * grid.expanded(delta)
        codes = steps[part]
        slope = (codes * (hessian[part] @ error)).sum(0)
        curvature = (codes * (hessian[part, part] @ codes)).sum(0)
        factor = 1 + slope / curvature / delta[i]
        good = (factor > FACTORS[0]) & (factor < FACTORS[1])  # False for codes that are all zero
        delta[i] = torch.where(good, delta[i] * factor, delta[i])
        start += size
    return replace(grid, delta=delta)


def rounded(target: Tensor, hessian: Tensor, grid: Grid, *, refit: bool) -> tuple[Tensor, Grid]:
    """Round a target, (K, O), to the grid: `gptq`, then `descend` with step sizes that fit its result.

    Args:
        target, hessian, grid: as for `gptq`.
        refit: whether step sizes may change.

    Returns:
        codes less zero points, (K, O), and their grid.
    """
    steps = gptq(target, hessian, grid)
    if refit:
        grid = refitted(target, hessian, grid, steps)
    return descend(target, hessian, grid, steps), grid


def fitted_target(weight: Tensor, hessian: Tensor, missing: Tensor) -> Tensor:
    """Return the weights that turn the layer's inputs into the outputs that it has in full precision.

    Args:
        weight: W, (K, O).
        hessian: damped moments H of the inputs x in the quantized network, (K, K).
        missing: moments of x and of what W x lacks of the output in full precision, (K, O).

    Returns:
        W + H^-1 missing, (K, O): ridge regression towards W (Zhang et al. 2025, Qronos, arXiv 2505.11695).
    """
    return weight + torch.cholesky_solve(missing, torch.linalg.cholesky(hessian))
