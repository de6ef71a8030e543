"""Rounding in closed form, in float64: against a textbook GPTQ, an exhaustive check of single codes, and algebra."""

from itertools import pairwise, product

import pytest
import torch
from torch import Tensor

from qdiff.closed_form.gptq import Grid, damped, descend, fitted_target, gptq, refitted, rounded

INPUTS, OUTPUTS = 70, 6  # more inputs than a block holds


def problem(seed: int, inputs: int = INPUTS) -> tuple[Tensor, Tensor]:
    """A target, (K, O), and correlated moments of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3 * inputs, inputs, generator=generator, dtype=torch.float64)
    mix = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    x = x @ (torch.eye(inputs, dtype=torch.float64) + 0.3 * mix)
    target = torch.randn(inputs, OUTPUTS, generator=generator, dtype=torch.float64)
    return target, damped(x.T @ x / len(x))


def grid_for(target: Tensor, slices: tuple[int, ...] | None = None, bits: int = 3) -> Grid:
    """The range of each output's largest value, with zero points that differ."""
    slices = slices or (len(target),)
    parts = target.split(slices)
    delta = torch.stack([(p.amax(0) - p.amin(0)) / (2**bits - 1) * 0.9 for p in parts])
    zero_point = torch.stack([(-p.amin(0) * 0.9 / d).round() for p, d in zip(parts, delta)])
    return Grid(delta, zero_point, slices, 0, 2**bits - 1)


def nearest_to(grid: Grid, weight: Tensor) -> Tensor:
    """Codes less zero points, (K, O), of a weight rounded to nearest."""
    low, high = grid.bounds
    return (weight / grid.expanded(grid.delta)).round().clamp(low, high)


def error(target: Tensor, hessian: Tensor, grid: Grid, steps: Tensor) -> Tensor:
    """Of each output, (O,)."""
    e = target - grid.values(steps)
    return (e * (hessian @ e)).sum(0)


def on_grid(grid: Grid, steps: Tensor) -> bool:
    codes = steps + grid.expanded(grid.zero_point)
    return bool(((codes >= grid.lo) & (codes <= grid.hi) & (steps == steps.round())).all())


def textbook(target: Tensor, hessian: Tensor, grid: Grid) -> Tensor:
    """OBQ in a fixed order (Frantar et al. 2022, equations 2 and 3), an input at a time, inverting what is left."""
    rest, left = target.clone(), hessian.diagonal().argsort(descending=True).tolist()
    steps, delta, (low, high) = torch.empty_like(target), grid.expanded(grid.delta), grid.bounds
    while left:
        inverse = torch.linalg.inv(hessian[left][:, left])
        j = left[0]
        steps[j] = (rest[j] / delta[j]).round().clamp(low[j], high[j])
        off = (rest[j] - steps[j] * delta[j]) / inverse[0, 0]
        rest[left] -= inverse[:, :1] * off
        left = left[1:]
    return steps


def test_nearest_is_the_nearest_value_of_the_grid():
    target, _ = problem(0)
    grid = grid_for(target, (30, 40))
    codes = torch.arange(grid.lo, grid.hi + 1)
    for j, o in product((0, 29, 30, 69), range(OUTPUTS)):
        s = int(j >= 30)
        values = (codes - grid.zero_point[s, o]) * grid.delta[s, o]
        best = (values - target[j, o]).abs().min()
        assert (grid.values(nearest_to(grid, target))[j, o] - target[j, o]).abs() == pytest.approx(best.item())
    assert on_grid(grid, nearest_to(grid, target))


@pytest.mark.parametrize("slices", [None, (30, 40)])
@pytest.mark.parametrize("inputs", [5, 64, 70])
def test_gptq_is_the_textbooks(inputs, slices):
    target, hessian = problem(1, inputs)
    grid = grid_for(target, slices if inputs == INPUTS else None)
    steps = gptq(target, hessian, grid)
    assert torch.equal(steps, textbook(target, hessian, grid)) and on_grid(grid, steps)
    assert error(target, hessian, grid, steps).sum() < error(target, hessian, grid, nearest_to(grid, target)).sum()


def test_without_correlation_all_round_to_nearest():
    target, hessian = problem(2)
    hessian, grid = hessian.diagonal().diag(), grid_for(target)
    nearest = nearest_to(grid, target)
    assert torch.equal(gptq(target, hessian, grid), nearest)
    assert torch.equal(descend(target, hessian, grid, torch.zeros_like(nearest)), nearest)


@pytest.mark.parametrize("start", [gptq, lambda target, hessian, grid: nearest_to(grid, target)])
def test_descent_never_increases_the_error(start):
    target, hessian = problem(3)
    grid = grid_for(target, (30, 40))
    steps = start(target, hessian, grid)
    given = steps.clone()
    errors = [error(target, hessian, grid, descend(target, hessian, grid, steps, n)) for n in range(6)]
    assert torch.equal(steps, given), "the start is not changed"
    assert all((after <= before * (1 + 1e-12)).all() for before, after in pairwise(errors))
    assert errors[2].sum() < errors[0].sum()


def test_descent_ends_where_no_single_code_can_be_better():
    target, hessian = problem(4)
    grid = grid_for(target, (30, 40))
    steps = descend(target, hessian, grid, nearest_to(grid, target), sweeps=100)
    assert torch.equal(descend(target, hessian, grid, steps, sweeps=1), steps) and on_grid(grid, steps)
    least, low = error(target, hessian, grid, steps), grid.expanded(grid.lo - grid.zero_point)
    for j, code in product(range(0, INPUTS, 7), range(grid.lo, grid.hi + 1)):
        changed = steps.clone()
        changed[j] = low[j] + code - grid.lo
        assert (error(target, hessian, grid, changed) >= least * (1 - 1e-12)).all()


def test_a_sweep_is_one_input_after_the_other():
    """Each the best of all codes, given those before it as they are now."""
    target, hessian = problem(5)
    grid = grid_for(target)
    steps = expected = nearest_to(grid, target)
    expected = steps.clone()
    for j in range(INPUTS):
        candidates = []
        for code in range(grid.lo, grid.hi + 1):
            tried = expected.clone()
            tried[j] = code - grid.zero_point[0]
            candidates.append(error(target, hessian, grid, tried))
        expected[j] = torch.stack(candidates).argmin(0) + grid.lo - grid.zero_point[0]
    assert torch.equal(descend(target, hessian, grid, steps, sweeps=1), expected)


def test_no_step_size_is_better_than_the_refitted_one():
    target, hessian = problem(6)
    grid = grid_for(target)
    steps = nearest_to(grid, target)
    fitted = refitted(target, hessian, grid, steps)
    closed = (steps * (hessian @ target)).sum(0) / (steps * (hessian @ steps)).sum(0)
    torch.testing.assert_close(fitted.delta[0], closed)
    least = error(target, hessian, fitted, steps)
    assert (least <= error(target, hessian, grid, steps)).all()
    for factor in (0.99, 0.9999, 1.0001, 1.01):
        other = Grid(fitted.delta * factor, grid.zero_point, grid.slices, grid.lo, grid.hi)
        assert (error(target, hessian, other, steps) > least).all()
    assert torch.equal(fitted.zero_point, grid.zero_point)


def test_slices_are_refitted_one_after_the_other():
    target, hessian = problem(7)
    grid = grid_for(target, (30, 40))
    steps = nearest_to(grid, target)
    delta = grid.delta.clone()
    for i, rows in enumerate((slice(0, 30), slice(30, 70))):
        others = grid.expanded(delta) * steps
        others[rows] = 0
        codes = torch.zeros_like(steps)
        codes[rows] = steps[rows]
        delta[i] = (codes * (hessian @ (target - others))).sum(0) / (codes * (hessian @ codes)).sum(0)
    torch.testing.assert_close(refitted(target, hessian, grid, steps).delta, delta)


def test_a_step_size_far_from_the_old_one_is_not_taken():
    """Nor is one that codes of zero alone leave undetermined."""
    target, hessian = problem(8)
    grid = grid_for(target)
    steps = nearest_to(grid, target)
    steps[:, 0] = 0
    steps[:, 1] *= -1  # best with a negative step
    fitted = refitted(target, hessian, Grid(grid.delta * 3, grid.zero_point, grid.slices, 0, 7), steps)
    assert torch.equal(fitted.delta[0], 3 * grid.delta[0])
    nearer = refitted(target, hessian, grid, steps).delta[0] != grid.delta[0]
    assert nearer.tolist() == [False, False, True, True, True, True]


@pytest.mark.parametrize("refit", [False, True])
def test_each_part_of_rounding_lowers_the_error(refit):
    target, hessian = problem(9)
    grid = grid_for(target, (30, 40))
    steps, found = rounded(target, hessian, grid, refit=refit)
    first = gptq(target, hessian, grid)
    second = descend(target, hessian, grid, first)
    errors = [error(target, hessian, g, s).sum() for g, s in ((grid, first), (grid, second), (found, steps))]
    assert errors == sorted(errors, reverse=True) and on_grid(found, steps)
    assert torch.equal(found.delta, grid.delta) != refit
    assert torch.equal(steps, second) != refit


def test_values_on_the_grid_are_found_exactly():
    target, hessian = problem(10)
    grid = grid_for(target, (30, 40))
    codes = nearest_to(grid, target)
    steps, found = rounded(grid.values(codes), hessian, grid, refit=True)
    assert torch.equal(steps, codes)
    torch.testing.assert_close(found.delta, grid.delta)


def test_damping_is_a_hundredth_of_the_mean_moment():
    hessian = torch.diag(torch.tensor([1.0, 2.0, 6.0]))
    torch.testing.assert_close(damped(hessian), torch.diag(torch.tensor([1.03, 2.03, 6.03])))
    found = damped(torch.zeros(3, 3))
    assert torch.equal(found, torch.eye(3)), "of inputs that do not vary every code is as good"


@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_the_fitted_target_is_a_ridge_regression(damping):
    """Least squares over inputs and outputs, with a row sqrt(damping) e_k that asks for W in each input."""
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(200, 8, generator=generator, dtype=torch.float64)
    y, weight = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (200, 8))
    more = damping**0.5 * torch.eye(8, dtype=torch.float64)
    expected = torch.linalg.lstsq(torch.cat([x, more]), torch.cat([y, more @ weight])).solution
    hessian = x.T @ x + damping * torch.eye(8, dtype=torch.float64)
    torch.testing.assert_close(fitted_target(weight, hessian, x.T @ (y - x @ weight)), expected)
