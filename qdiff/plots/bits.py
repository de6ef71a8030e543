"""The bits of each sampling step, and what they were chosen by."""

from typing import TYPE_CHECKING

from qdiff.mixed_precision.choice import Choice
from qdiff.mixed_precision.criteria import SignalToNoise
from qdiff.plots.style import drawing, line_style, spaced, timestep_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKED = 25  # steps, at most


def draw_bits(choice: Choice) -> "Figure":
    """Draw what a criterion compares at each step, above the bits that it chose (PTQD, section 3.4).

    By the paper's criterion these are the signal-to-noise ratios of all widths and of the forward process; within a
    budget, the squared errors of the image that the widths are predicted to add.

    Args:
        choice: as a quantized file records it.

    Raises:
        UserError: matplotlib is not installed.
    """
    with drawing(4.2) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        if isinstance(choice.criterion, SignalToNoise):
            _draw_ratios(above, choice, choice.criterion.ratio)
        else:
            _draw_errors(above, choice)
        above.set_yscale("log")
        above.grid()
        bits = choice.bits[::-1]
        below.step(range(len(bits)), bits, where="mid", color="black")
        below.set_yticks(choice.measured.widths)
        below.set_ylim(choice.measured.widths[0] - 1, choice.measured.widths[-1] + 1)
        below.set_ylabel("bits")
        below.grid()
        timestep_axis(below, choice.measured.timesteps[::-1])
        above.set_title(f"{choice.criterion}; {choice.share:.3f} of the BOPs", loc="left")
        figure.legend(*above.get_legend_handles_labels(), loc="outside lower left", ncols=4)
    return figure


def _draw_ratios(axes: "Axes", choice: Choice, ratio: str) -> None:
    for i, bits in enumerate(choice.measured.widths):
        _draw_line(axes, i, choice.measured.snr(bits, ratio), f"SNR$^Q$, {bits} bits")
    axes.plot(choice.measured.forward[::-1], color="black", linewidth=2.4, label="SNR$^F$")
    axes.set_ylabel("signal-to-noise ratio")


def _draw_errors(axes: "Axes", choice: Choice) -> None:
    assert choice.spectrum is not None  # which this criterion needs
    for i, bits in enumerate(choice.measured.widths):
        _draw_line(axes, i, choice.measured.image_errors(bits, choice.spectrum), f"{bits} bits")
    axes.set_ylabel("predicted squared error")


def _draw_line(axes: "Axes", i: int, values: list[float], label: str) -> None:
    axes.plot(values[::-1], label=label, markevery=list(spaced(len(values), MARKED)), **line_style(i))
