"""JSON files that others may have written: read whole, or refused in one line."""

import json
from pathlib import Path
from typing import Any

from qdiff.errors import UserError

LARGEST = 2**26  # bytes; results files have thousands


def read_json(path: Path, remedy: str) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        remedy: what to do instead, for error messages.

    Raises:
        UserError: the file is missing, no file, larger than 64 MiB, or not JSON in UTF-8.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():  # opening a pipe would wait for ever
            raise UserError(f"'{path}' is not a file: {remedy}")
        if (size := path.stat().st_size) > LARGEST:
            raise UserError(f"'{path}' has {size / 2**20:,.0f} MiB, which no results file has: {remedy}")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"cannot read '{path}' ({e.strerror}): {remedy}") from e
    except (ValueError, RecursionError) as e:
        raise UserError(f"'{path}' is not valid JSON ({e}): {remedy}") from e
