"""Tables as text."""

from collections.abc import Sequence

PREFIXES = ("", "k", "M", "G", "T", "P", "E")


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Align the cells of each column to the left, two spaces apart, one line per row without trailing spaces.

    Args:
        rows: cells without line breaks; all rows have the same length.
    """
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def with_prefix(number: float) -> str:
    """Return a number >= 0 with four digits and a prefix up to exa, such as "6.222 G"; below 1000 without one."""
    prefixes = iter(PREFIXES)
    prefix = next(prefixes)
    while float(f"{number:.4g}") >= 1000:
        number, prefix = number / 1000, next(prefixes)
    return f"{number:.4g} {prefix}".rstrip()


def markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown; cells must not contain "|" or line breaks."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [titles, ["---"] * len(titles), *rows])
