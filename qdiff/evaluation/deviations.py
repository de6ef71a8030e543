"""Why the values of a table cannot be those of its publication: what differs, and what cannot be checked."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from qdiff.config.tables import Table
from qdiff.evaluation.choices import Choices
from qdiff.evaluation.kinds import KINDS, REMEDIES
from qdiff.evaluation.record import Evaluation
from qdiff.evaluation.results import Result
from qdiff.files.digest import file_digest
from qdiff.files.download import Pin, pin_of

# Key on other networks, or for few images -> the measure, whose key is that of a standard value
PLAIN = {"frechet": "fid", "frechet_spatial": "sfid", "class_score": "is"}


def deviations(table: Table, chosen: Choices, rows: Sequence[Result]) -> list[str]:
    """Return why the values of the rows are no reproduction; empty if nothing that can be checked differs.

    Args:
        table: as its presets state it.
        chosen: by the user.
        rows: what was obtained.

    Raises:
        OSError: the weights cannot be read.
    """
    found = [
        *_weights(table, chosen),
        *_arguments(table, chosen),
        *_images(table, rows),
        *_reference(table, rows, chosen),
    ]
    found += [f"{name} is calibrated elsewhere, '{path}'" for name, path in chosen.calibrated.items()]
    if _other_network(table, chosen, rows):
        found.append("the feature network is another one")
    return [*found, *_missing(rows)]


def _arguments(table: Table, chosen: Choices) -> Iterator[str]:
    for key, value in chosen.arguments.items():
        stated = list(dict.fromkeys(str(row.arguments[key]) for row in table.rows if key in row.arguments))
        if stated != [str(value)]:
            yield f"{key} is {value} instead of {' or '.join(stated)}"


def _images(table: Table, rows: Sequence[Result]) -> Iterator[str]:
    for number in dict.fromkeys(row.evaluation.images.number for row in rows):
        if table.images == 0:
            yield f"the values are of {number:,} images, and the publication's prompts and their number are not known"
        elif number != table.images:
            yield f"the values are of {number:,} images instead of {table.images:,}"


def _weights(table: Table, chosen: Choices) -> Iterator[str]:
    stated = table.weights
    if chosen.random:
        yield "the weights are random"
        return
    if chosen.weights is None and stated.published:  # the script verifies what it downloads
        return
    pin = pin_of(stated.published) if stated.published else Pin("sha256", stated.sha256) if stated.sha256 else None
    path = chosen.weights or Path(stated.file)
    if pin is None:
        yield f"whether '{path}' holds the published weights is not known, because no digest of them is"
    elif (digest := pin.found(path) if path.is_file() else "") != pin.value:
        yield f"'{path}' does not hold the published weights ({pin.algorithm} {digest[:8]} instead of {pin.value[:8]})"


def _reference(table: Table, rows: Sequence[Result], chosen: Choices) -> Iterator[str]:
    stated = table.reference
    if stated.file and chosen.reference and file_digest(chosen.reference) != file_digest(Path(stated.file)):
        yield f"the reference is '{chosen.reference}' instead of '{stated.file}'"
    numbers = {row.evaluation.reference.number for row in rows if row.evaluation.reference}
    for number in numbers - {None}:
        if stated.images and number != stated.images:
            yield f"the reference is of {number:,} images instead of {stated.images:,}"


def _other_network(table: Table, chosen: Choices, rows: Sequence[Result]) -> bool:
    if table.features:
        return chosen.own_features
    networks = [network for row in rows for network in row.evaluation.networks if network.role == "features"]
    return any(not network.standard for network in networks)


def _missing(rows: Sequence[Result]) -> Iterator[str]:
    reasons: dict[str, str] = {}
    for row in rows:
        for key in row.published.keys() - row.evaluation.values.keys():
            reasons.setdefault(key, _reason(key, row.evaluation))
    for key, reason in sorted(reasons.items()):
        yield f"{key} has no value ({reason})"


def _reason(key: str, found: Evaluation) -> str:
    """Return why a published metric has no value."""
    name = PLAIN.get(key, key)
    if key in PLAIN.values() and any(PLAIN.get(other) == key for other in found.values):
        return "it has another name, because of the feature network or of the number of images"
    if name in found.left_out:
        return found.left_out[name]
    needs = KINDS[name].needs if name in KINDS else ()
    return REMEDIES[needs[0]] if needs else "it was not computed"
