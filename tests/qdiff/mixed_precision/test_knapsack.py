"""The knapsack against all of its combinations."""

import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdiff.mixed_precision.knapsack import best_options

ERROR = st.floats(0, 100, width=32)


def total(values, options):
    return sum(x[k] for x, k in zip(values, options))


def least_error(errors, costs, budget):
    options = product(*(range(len(item)) for item in errors))
    return min((total(errors, o) for o in options if total(costs, o) <= budget), default=math.inf)


@given(st.lists(st.tuples(ERROR, ERROR), min_size=1, max_size=8), st.integers(0, 40))
def test_two_options_of_equal_costs_are_chosen_best(errors, budget):
    costs = [(1, 3)] * len(errors)
    chosen = best_options(errors, costs, budget)
    if budget < len(errors):
        assert chosen is None
        return
    assert total(costs, chosen) <= budget
    assert total(errors, chosen) == pytest.approx(least_error(errors, costs, budget), rel=1e-9, abs=1e-9)


ITEMS = st.lists(
    st.lists(st.tuples(ERROR, st.integers(0, 20)), min_size=1, max_size=3, unique_by=lambda x: x[1]),
    min_size=1,
    max_size=5,
)


@given(ITEMS, st.integers(0, 80))
def test_any_options_are_within_the_budget_and_less_than_an_exchange_from_the_best(items, budget):
    errors, costs = ([[x[i] for x in item] for item in items] for i in range(2))
    chosen = best_options(errors, costs, budget)
    least = least_error(errors, costs, budget)
    if chosen is None:
        assert least == math.inf
        return
    assert total(costs, chosen) <= budget
    exchange = max(max(item) - min(item) for item in errors)
    assert least - 1e-6 <= total(errors, chosen) <= least + exchange + 1e-6


@given(ITEMS, st.floats(0, 50, width=32))
def test_where_exchanges_end_at_the_budget_the_choice_is_best(items, rate):
    """Such budgets are those that least errors plus `rate` times costs take: Lagrange's."""
    errors, costs = ([[x[i] for x in item] for item in items] for i in range(2))
    weighed = [[e + rate * c for e, c in zip(*item)] for item in zip(errors, costs)]
    budget = total(costs, [min(range(len(w)), key=lambda k: (w[k], c[k])) for w, c in zip(weighed, costs)])
    chosen = best_options(errors, costs, budget)
    assert total(errors, chosen) == pytest.approx(least_error(errors, costs, budget), rel=1e-6, abs=1e-4)


def test_the_hull_is_climbed_from_its_best_rate():
    """Option 1 is above the line from 0 to 2, so that it is never a stop."""
    assert best_options([[10, 9, 0]], [[0, 1, 2]], 2) == [2]
    assert best_options([[10, 9, 0]], [[0, 1, 2]], 1) == [0]
    assert best_options([[10, 4, 0]], [[0, 1, 2]], 1) == [1]


def test_more_bits_that_err_more_are_not_bought():
    assert best_options([[1.0, 2.0], [3.0, 1.0]], [[1, 2], [1, 2]], 100) == [0, 1]


def test_an_exchange_that_does_not_fit_leaves_room_for_others():
    errors, costs = [[9, 0], [5, 0]], [[0, 10], [0, 1]]
    assert best_options(errors, costs, 5) == [0, 1]


def test_an_exchange_that_does_not_fit_is_not_followed_by_the_next_of_its_item():
    """Which alone costs 1, but not from the option that the item has."""
    assert best_options([[100, 50, 46]], [[0, 10, 11]], 5) == [0]


def test_large_costs_fit_a_budget_that_is_their_sum():
    costs = [[10**17 + 1, 3 * 10**17 + 7]] * 3
    assert best_options([[2.0, 1.0]] * 3, costs, 1.0 * sum(c[1] for c in costs)) == [1, 1, 1]
    assert best_options([[2.0, 1.0]] * 3, costs, 0.999 * sum(c[1] for c in costs)) == [1, 1, 0]
