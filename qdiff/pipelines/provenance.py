"""What a finished file was made from, compared with what is wanted now."""

import json
from collections.abc import Mapping
from pathlib import Path

from qdiff.errors import UserError


def check_provenance(
    file: Path, stored: Mapping[str, object], wanted: Mapping[str, object], make: str, made: str
) -> None:
    """Check that a finished file is the result of this job.

    Args:
        file: for error messages.
        stored: its provenance.
        wanted: JSON values of the job; tuples count as lists.
        make, made: what the job does, such as "calibrate" and "calibrated".

    Raises:
        UserError: the file is the result of another job.
    """
    described = json.loads(json.dumps(wanted))  # as the file has it
    changed = [key for key, value in described.items() if stored.get(key) != value]
    if changed:
        raise UserError(
            f"'{file}' was {made} with other {', '.join(changed)}: give another folder, or delete it to {make} again"
        )
