"""Evaluations of one protocol as a table for a terminal."""

from collections.abc import Iterator, Sequence

from qdiff.errors import UserError
from qdiff.evaluation.notes import published_notes
from qdiff.evaluation.record import Evaluation, ModelRecord, Row
from qdiff.files.tables import aligned, with_prefix

ROLES = {"features": "feature network", "clip": "CLIP model", "lpips": "LPIPS network"}


def check_comparable(evaluations: Sequence[Evaluation], flag: str = "--compare") -> None:
    """Check that evaluations may stand side by side.

    Args:
        evaluations: at least one; all are compared with the last.
        flag: the flag that names the others, for error messages.

    Raises:
        UserError: another reference, network or number of images.
    """
    *earlier, last = evaluations
    for other in earlier:
        for what, (theirs, ours) in {
            "reference": (_reference(other), _reference(last)),
            **{ROLES[role]: (_network(other, role), _network(last, role)) for role in ROLES},
            "number of images": (str(other.images.number), str(last.images.number)),
        }.items():
            if theirs and ours and theirs != ours:
                raise UserError(
                    f"{flag}: '{other.images.source}' was evaluated with another {what} ({theirs}, now {ours}): "
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
        *_costs([found.model for found in evaluations]),
        *([title, *(found.get(key, "-") for found in cells)] for key, title in titles.items()),
    ]
    first = [note for found in evaluations if found.is_full_precision for note in published_notes(found)]
    notes = [f"note: {note}" for note in (*first, *(note for note in last.notes if note not in first))]
    left_out = [f"left out: {name}: {reason}" for name, reason in last.left_out.items()]
    return "\n".join([*notes[: len(first)], aligned(rows), *notes[len(first) :], *left_out])


def _costs(models: Sequence[ModelRecord | None]) -> Iterator[list[str]]:
    """Yield rows about networks; none if nothing is known about them."""
    if any(models):
        files = [model.file_bytes if model else None for model in models]
        yield ["file of the network", *("-" if size is None else f"{size / 1e6:.2f} MB" for size in files)]
        yield ["BOPs per step", *(with_prefix(model.step_bops) if model else "-" for model in models)]
        yield ["BOPs per image", *(with_prefix(model.bops) if model else "-" for model in models)]


def _cell(row: Row) -> str:
    value = "∞" if row.value is None else f"{row.value:#.4g}"
    return value if row.published is None else f"{value} (published {row.published:g})"


def _reference(found: Evaluation) -> str:
    return found.reference.sha256[:8] if found.reference else ""


def _network(found: Evaluation, role: str) -> str:
    return next((network.sha256[:8] for network in found.networks if network.role == role), "")
