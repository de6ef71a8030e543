"""Values beside published ones."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from qdiff.evaluation.record import Evaluation


@dataclass(frozen=True)
class Line:
    """A value beside the published one: a row of a table with a row for each value.

    Attributes:
        method: what the method is called.
        metric: what the value is called, with its unit.
        published: value; None if none is published.
        obtained: value; None if there is none here, infinity for the PSNR of equal images.
    """

    method: str
    metric: str
    published: float | None
    obtained: float | None

    @property
    def difference(self) -> float | None:
        """Obtained less published; None if one of them is missing."""
        return None if self.published is None or self.obtained is None else self.obtained - self.published

    @property
    def cells(self) -> list[str]:
        """The line as text, numbers with four digits."""
        difference = "-" if self.difference is None else f"{self.difference:+.4g}"
        return [self.method, self.metric, _shown(self.published), _shown(self.obtained), difference]


def lines_of(method: str, published: Mapping[str, float], evaluation: Evaluation) -> Iterator[Line]:
    """Yield the values of a method; published ones that have none here stay, under the name of their key.

    Args:
        method: what it is called.
        published: key of a metric -> value.
        evaluation: what was obtained.
    """
    titles, values = {row.metric: row.title for row in evaluation.rows}, evaluation.values
    for key in dict.fromkeys([*published, *titles]):
        yield Line(method, titles.get(key, key), published.get(key), values.get(key))


def _shown(value: float | None) -> str:
    return "-" if value is None else "∞" if value == float("inf") else f"{value:#.4g}"
