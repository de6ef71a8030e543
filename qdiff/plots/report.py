"""The plots of a report."""

from pathlib import Path

from qdiff.analysis.images import ComparedImages
from qdiff.analysis.tradeoff import results_of
from qdiff.evaluation.results import Section
from qdiff.plots.images import draw_images
from qdiff.plots.output import write_figure
from qdiff.plots.tradeoff import draw_tradeoff


def write_plots(folder: Path, section: Section, compared: ComparedImages) -> dict[str, Path]:
    """Write the plots that every section of a report can have.

    Args:
        folder: created if missing.
        section: the section, whose results have the metric "psnr".
        compared: some images of its methods.

    Returns:
        caption -> file, for `Section.plots`.

    Raises:
        UserError: matplotlib is not installed, or a file cannot be written.
    """
    tradeoff, differences = folder / f"tradeoff_{section.name}.svg", folder / f"differences_{section.name}.png"
    write_figure(tradeoff, draw_tradeoff(results_of(section)))
    write_figure(differences, draw_images(compared))
    return {"Quality against size": tradeoff, "Differences to full precision": differences}
