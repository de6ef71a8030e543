"""Figures into files."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

from qdiff.errors import UserError
from qdiff.files.atomic import replacing
from qdiff.files.refusals import explaining
from qdiff.pipelines.paths import as_path
from qdiff.plots.style import styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METADATA: dict[str, dict[str, None]] = {  # without date and version: the same plot is the same bytes
    ".svg": {"Date": None, "Creator": None},
    ".png": {"Software": None},
}


def check_path(path: Path, flag: str = "path") -> None:
    """Check that a plot can have this name. Raises UserError, which names the flag, otherwise."""
    if path.is_dir():
        raise UserError(f"'{path}' is a folder: give {flag} the name of a file")
    if path.suffix.lower() not in METADATA:
        raise UserError(f"{flag} '{path}' ends neither in .svg nor in .png: choose one of them")


def write_figure(path: str | Path, figure: "Figure", flag: str = "path") -> None:
    """Write a figure, whole or not at all; a file there is replaced.

    Args:
        path: .svg or .png; its folder is created if missing.
        figure: as a function of `qdiff.plots` draws it.
        flag: what gave the path, for error messages.

    Raises:
        TypeError: `path` is not a path.
        UserError: as `check_path`, or the file cannot be written.
    """
    path = as_path(flag, path)
    check_path(path, flag)
    suffix, content = path.suffix.lower(), io.BytesIO()
    with styled():
        figure.savefig(content, format=suffix[1:], metadata=METADATA[suffix])
    with explaining(path, flag), replacing(path) as partial:
        partial.write_bytes(content.getvalue())
