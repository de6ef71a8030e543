"""Evaluations of one protocol as a table for a terminal."""

from collections.abc import Sequence

from qdiff.errors import UserError
from qdiff.evaluation.notes import published_notes
from qdiff.evaluation.record import Evaluation, Row
from qdiff.files.tables import aligned

ROLES = {"features": "feature network", "clip": "CLIP model", "lpips": "LPIPS network"}


def check_comparable(evaluations: Sequence[Evaluation]) -> None:
    """Check that evaluations may stand in one table. Raises UserError for other references, networks or numbers."""
    *earlier, last = evaluations
    for other in earlier:
        for what, (theirs, ours) in {
            "reference": (_reference(other), _reference(last)),
            **{ROLES[role]: (_network(other, role), _network(last, role)) for role in ROLES},
            "number of images": (str(other.images.number), str(last.images.number)),
        }.items():
            if theirs and ours and theirs != ours:
                raise UserError(
                    f"--compare: '{other.images.source}' was evaluated with another {what} ({theirs}, now {ours}): "
                    "compare results of one protocol"
                )


def text(evaluations: Sequence[Evaluation]) -> str:
    """Return a table, one column for each evaluation, and what to know about it.

    Args:
        evaluations: comparable ones; the notes are those of the last; what full precision misses comes first.
    """
    last = evaluations[-1]
    titles = {row.metric: row.title for found in evaluations for row in found.rows}
    cells = [{row.metric: _cell(row) for row in found.rows} for found in evaluations]
    rows = [
        ["", *(found.images.source for found in evaluations)],
        ["images", *(f"{found.images.number:,}" for found in evaluations)],
        ["bits", *(found.sampling.bits if found.sampling else "-" for found in evaluations)],
        *([title, *(found.get(key, "-") for found in cells)] for key, title in titles.items()),
    ]
    first = [note for found in evaluations if found.is_full_precision for note in published_notes(found)]
    notes = [f"note: {note}" for note in (*first, *(note for note in last.notes if note not in first))]
    left_out = [f"left out: {name}: {reason}" for name, reason in last.left_out.items()]
    return "\n".join([*notes[: len(first)], aligned(rows), *notes[len(first) :], *left_out])


def _cell(row: Row) -> str:
    value = "∞" if row.value is None else f"{row.value:#.4g}"
    return value if row.published is None else f"{value} (published {row.published:g})"


def _reference(found: Evaluation) -> str:
    return found.reference.sha256[:8] if found.reference else ""


def _network(found: Evaluation, role: str) -> str:
    return next((network.sha256[:8] for network in found.networks if network.role == role), "")
