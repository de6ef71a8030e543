"""The multiple-choice knapsack: an option for each item, with the least errors whose costs are within a budget."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Exchange(NamedTuple):
    """An item's change to a better option: the error that it saves per cost, the item, the option, and the cost."""

    rate: float
    item: int
    option: int
    cost: float


def best_options(
    errors: Sequence[Sequence[float]], costs: Sequence[Sequence[float]], budget: float
) -> list[int] | None:
    """Choose an option for each item, by exchanges on the convex hulls of the items' options.

    From the cheapest options on, the exchange that saves most error for its cost comes first (Sinha and Zoltners 1979).
    The result is the best one for the costs that it has, as long as every exchange fits: always where items have two
    options of equal costs. Otherwise its error exceeds the least one by less than a single exchange saves.

    Args:
        errors: of each item, one for each of its options, in any unit that adds up.
        costs: likewise, >= 0.
        budget: bound of the sum of costs.

    Returns:
        the number of each item's option; None if even the cheapest ones exceed the budget.
    """
    chosen = [min(range(len(cost)), key=lambda k: (cost[k], error[k])) for error, cost in zip(errors, costs)]
    left = budget - sum(cost[k] for cost, k in zip(costs, chosen))
    if left < -_rounding(budget):
        return None
    exchanges = [x for i, (error, cost) in enumerate(zip(errors, costs)) for x in _exchanges(i, error, cost, chosen[i])]
    full: set[int] = set()  # items whose next exchange is too expensive, so that those after it cannot be made
    for exchange in sorted(exchanges, key=lambda x: -x.rate):  # stable: those of an item keep their order
        if exchange.item in full or exchange.cost > left + _rounding(budget):
            full.add(exchange.item)
        else:
            chosen[exchange.item] = exchange.option
            left -= exchange.cost
    return chosen


def _exchanges(item: int, errors: Sequence[float], costs: Sequence[float], start: int) -> Iterator[Exchange]:
    """Yield the exchanges along the lower convex hull of (cost, error), whose rates fall."""
    now = start
    while better := [k for k in range(len(costs)) if costs[k] > costs[now] and errors[k] < errors[now]]:
        rates = {k: (errors[now] - errors[k]) / (costs[k] - costs[now]) for k in better}
        best = max(better, key=lambda k: (rates[k], costs[k]))
        yield Exchange(rates[best], item, best, costs[best] - costs[now])
        now = best


def _rounding(budget: float) -> float:
    """Return what sums of costs may exceed a budget by, because floats are rounded."""
    return 1e-9 * abs(budget)
