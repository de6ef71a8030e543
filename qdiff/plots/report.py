"""The plots of a report."""

from pathlib import Path

from qdiff.analysis.images import ComparedImages
from qdiff.analysis.tradeoff import results_of
from qdiff.evaluation.results import Section
from qdiff.plots.images import draw_images
from qdiff.plots.output import write_figure
from qdiff.plots.tradeoff import draw_tradeoff

METRIC = "psnr"


def write_plots(folder: Path, section: Section, compared: ComparedImages) -> dict[str, Path]:
    """Write the plots that every section of a report can have.

    Args:
        folder: created if missing.
        section: the section; methods with a finite PSNR to full precision are drawn against their size.
        compared: some images of its methods.

    Returns:
        caption -> file, for `Section.plots`; empty for full precision alone.

    Raises:
        UserError: matplotlib is not installed, or a file cannot be written.
    """
    plots, results = {}, results_of(section)
    if any(METRIC in result.numbers for result in results):
        plots["Quality against size"] = folder / f"tradeoff_{section.name}.svg"
        write_figure(plots["Quality against size"], draw_tradeoff(results, METRIC))
    if compared.images:
        plots["Differences to full precision"] = folder / f"differences_{section.name}.png"
        write_figure(plots["Differences to full precision"], draw_images(compared))
    return plots
