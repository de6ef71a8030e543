"""The runs of a table, evaluated: a section of a report, with its plots."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdiff.cli.recorded import load_run
from qdiff.cli.table_commands import Command
from qdiff.config.tables import Row, Table
from qdiff.evaluation.choices import Choices

if TYPE_CHECKING:
    from qdiff.analysis.images import ComparedImages
    from qdiff.evaluation.results import Result, Section

SHOWN = 8  # images of each method beside their differences to full precision


def section_of(
    stated: Table, table: Table, chosen: Choices, runs: Sequence[Command], options: Mapping[str, Any], command: str
) -> "Section":
    """Evaluate the runs of a table, and draw its plots in the folder that has their folders.

    Args:
        stated: the table as its presets state it.
        table: with the choices of the user.
        chosen: these.
        runs: of the rows, complete.
        options: of `qdiff.evaluate`.
        command: that makes the table.

    Raises:
        UserError: images or a network cannot be read, or a metric cannot be computed.
    """
    from qdiff.evaluation.deviations import deviations
    from qdiff.evaluation.results import Section
    from qdiff.plots.report import write_plots

    fp = runs[0].folder
    results = [_result(row, run, fp, options) for row, run in zip(table.rows, runs)]
    why, shown = deviations(stated, chosen, results), _columns(fp, results[0].grid)
    title = f"{table.title}: {results[0].evaluation.images.number:,} images per method, same seeds"
    section = Section(table.name, title, results, command, why, shown)
    return replace(section, plots=write_plots(fp.parent, section, _compared(table, runs)))


def _result(row: Row, run: Command, fp: Path, options: Mapping[str, Any]) -> "Result":
    from qdiff.evaluation.results import Result
    from qdiff.pipelines.evaluate import evaluate

    finished, grid = load_run(run.folder), run.folder / "grid.png"
    found = evaluate(finished, full_precision=fp, published=row.published, **options)
    model = found.model or finished.model()  # which says why it is not known
    assert model.file_bytes is not None, "the network of a run is in a file"
    size, fp32 = model.file_bytes, 4 * model.parameters
    return Result(
        row.name, row.title, str(run), found, size, fp32, grid if grid.exists() else None, row.published, row.source
    )


def _columns(run: Path, grid: Path | None) -> list[str]:
    """Return the classes or prompts that the columns of a run's overview show; empty if a column shows several."""
    from qdiff.evaluation.image_sets import Folder
    from qdiff.files.grid import columns_of
    from qdiff.pipelines.output import GRID_IMAGES

    if grid is None:
        return []
    images = Folder.open(run, GRID_IMAGES)
    columns, captions = columns_of(grid, images.shape[2]), images.labels or images.prompts or []
    alternate = all(caption == captions[i % columns] for i, caption in enumerate(captions))
    return captions[:columns] if alternate and len(set(captions)) > 1 else []


def _compared(table: Table, runs: Sequence[Command]) -> "ComparedImages":
    """Return the first images of each row."""
    from qdiff.analysis.images import ComparedImages
    from qdiff.files.images import read_images

    images = {
        row.title: read_images(sorted((run.folder / "img").glob("*.png"))[:SHOWN]) for row, run in zip(table.rows, runs)
    }
    return ComparedImages(images.pop(table.rows[0].title), images)
