"""A row of the table, and the timing of calls."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

REPEATS = 7


@dataclass(frozen=True)
class Row:
    """One measured value."""

    name: str
    value: float
    unit: str
    note: str = ""


def median_seconds(function: Callable[[], object], repeats: int = REPEATS) -> float:
    """Return the median wall-clock time of a call, seconds, after a warm-up call."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
