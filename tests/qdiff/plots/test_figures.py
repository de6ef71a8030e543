"""What the figures show: their numbers, their words, and that nothing is cut off or lies upon another."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from qdiff.analysis.images import ComparedImages
from qdiff.analysis.layer_errors import LayerErrors
from qdiff.analysis.ranges import ActivationRanges
from qdiff.analysis.split import Halves, SplitShortcut
from qdiff.analysis.tradeoff import MethodResult
from qdiff.analysis.trajectory import TrajectoryErrors
from qdiff.mixed_precision.choice import Choice
from qdiff.mixed_precision.criteria import BopsBudget, SignalToNoise
from qdiff.mixed_precision.measurement import Measurement
from qdiff.plots.bits import draw_bits
from qdiff.plots.correction import draw_correction
from qdiff.plots.images import draw_images
from qdiff.plots.layer_errors import draw_layer_errors
from qdiff.plots.ranges import draw_ranges
from qdiff.plots.split import draw_split
from qdiff.plots.tradeoff import draw_tradeoff
from qdiff.plots.trajectory import draw_trajectory
from qdiff.spectrum import Spectrum
from tests.qdiff.correction.tables import make_table
from tests.qdiff.plots.layout import check_layout

TIMESTEPS = tuple(float(t) for t in range(950, -1, -50))
LONG = "model.output_blocks.11.1.transformer_blocks.0.attn2"


def titles(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes if axes.get_visible()]


def legend(figure: Figure) -> list[str]:
    (only,) = figure.legends
    return [text.get_text() for text in only.get_texts()]


@pytest.fixture
def ranges() -> ActivationRanges:
    grow = torch.arange(1, len(TIMESTEPS) + 1)[:, None] * torch.linspace(-1, 1, 7)
    sites = {f"{LONG}.{name}": grow ** (1 / (2 * i + 1)) if i % 2 else grow + i for i, name in enumerate("abcdefg")}
    return ActivationRanges(TIMESTEPS, {**{s: x.nan_to_num(0).sort().values for s, x in sites.items()}, "eps": grow})


class TestRanges:
    def test_the_median_and_the_bands_are_the_quantiles(self, ranges):
        figure = draw_ranges(ranges, ["eps"])
        (axes,) = figure.axes
        (median,) = axes.lines
        assert median.get_ydata().tolist() == ranges.quantiles["eps"][:, 3].tolist()
        for i, band in enumerate(axes.collections):
            low, high = ranges.quantiles["eps"][:, i].min(), ranges.quantiles["eps"][:, 6 - i].max()
            extent = band.get_paths()[0].get_extents()
            assert (extent.ymin, extent.ymax) == pytest.approx((low.item(), high.item()))
        assert legend(figure) == ["minimum to maximum", "1 % to 99 %", "25 % to 75 %", "median"]
        assert axes.get_ylabel() == "prediction" and "timestep" in axes.get_xlabel()
        assert [tick.get_text() for tick in axes.get_xticklabels()][:2] == ["950", "800"]

    def test_by_default_eps_and_those_that_change_most(self, ranges):
        figure = draw_ranges(ranges)
        shown = ["eps", *ranges.most_changing(5)]
        assert [title[-8:] for title in titles(figure)] == [name[-8:] for name in shown]
        check_layout(figure)

    @pytest.mark.parametrize("count", [1, 2, 3, 7])
    def test_any_number_of_sites(self, ranges, count):
        figure = draw_ranges(ranges, list(ranges.quantiles)[:count])
        assert len(titles(figure)) == count
        check_layout(figure)


def test_a_split_shortcut():
    edges, x = torch.linspace(-1, 3, 81), torch.rand(2, 80, generator=torch.Generator().manual_seed(0))
    halves = Halves(edges, x / x.sum(1, keepdim=True), torch.tensor([[-1.0, 1.0], [-1.0, 3.0]]))
    narrow = Halves(edges / 1e4, halves.shares, halves.extremes.flip(0) * torch.tensor([[1.0], [8.0]]))
    figure = draw_split(f"{LONG}.skip_connection", SplitShortcut((128, 64), halves, narrow))
    left, right = figure.axes
    for axes, shown in ((left, halves), (right, narrow)):
        for patch, shares in zip(axes.patches, shown.shares):
            np.testing.assert_array_equal(patch.get_data().values, shares)
            np.testing.assert_array_equal(patch.get_data().edges, shown.edges)
    assert titles(figure) == ["ranges differ by 2 x", "ranges differ by 4 x"]
    assert legend(figure) == ["from the layer below, 128 channels", "from the skip connection, 64 channels"]
    assert "share" in left.get_ylabel() and left.get_yscale() == right.get_yscale() == "log"
    check_layout(figure)


class TestLayerErrors:
    def errors(self, blocks: int, layers: int) -> LayerErrors:
        names = [f"model.up.{i}.block" for i in range(blocks) for _ in range(layers)]
        values = torch.logspace(-7, -0.5, len(names) * len(TIMESTEPS), dtype=torch.float64)
        paths = tuple(f"{name}.{i}" for i, name in enumerate(names))
        return LayerErrors(TIMESTEPS, paths, tuple(names), values.reshape(len(names), -1))

    def test_the_map_is_the_errors_on_four_decades(self):
        errors = self.errors(5, 3)
        figure = draw_layer_errors(errors, "w4a8")
        axes, bar = figure.axes
        (image,) = axes.images
        np.testing.assert_array_equal(image.get_array(), errors.errors)
        assert image.get_clim() == pytest.approx((10**-4.5, 10**-0.5))
        assert [tick.get_text() for tick in axes.get_yticklabels()] == [f"model.up.{i}.block" for i in range(5)]
        assert list(axes.get_yticks()) == [1, 4, 7, 10, 13]
        assert [line.get_ydata()[0] for line in axes.lines] == [2.5, 5.5, 8.5, 11.5, 14.5], "between blocks"
        assert axes.get_title(loc="left") == "w4a8: errors within the whole network"
        assert bar.get_ylabel() == "relative squared error of a layer's output"
        check_layout(figure)

    @pytest.mark.parametrize("shape", [(1, 1), (3, 1), (60, 1), (40, 8)])
    def test_few_and_many_layers(self, shape):
        check_layout(draw_layer_errors(self.errors(*shape), "w4a8"))

    def test_errors_that_are_zero_or_unknown_are_left_out(self):
        errors = self.errors(2, 2)
        errors.errors[0, :4] = torch.tensor([0.0, math.nan, math.inf, 1e-3])
        (image,) = draw_layer_errors(errors, "").axes[0].images
        assert image.get_clim()[1] == pytest.approx(10**-0.5)

    def test_without_any_error_there_is_nothing_to_shade(self):
        errors = self.errors(2, 2)
        errors.errors.zero_()
        check_layout(draw_layer_errors(errors, "w4a8"))


@pytest.mark.parametrize("count", [1, 3, 9])
def test_errors_along_the_trajectory(count):
    values = tuple(np.logspace(-4, -1, len(TIMESTEPS)))
    errors = {f"network {i}": TrajectoryErrors(TIMESTEPS, values, tuple(2 * x for x in values)) for i in range(count)}
    figure = draw_trajectory(errors)
    left, right = figure.axes
    for line in left.lines:
        assert tuple(line.get_ydata()) == values
    for line in right.lines:
        assert tuple(line.get_ydata()) == errors["network 0"].distance
    assert legend(figure) == list(errors) and left.get_ylabel() == "relative squared error"
    assert len({(line.get_color(), line.get_marker(), str(line.get_linestyle())) for line in left.lines}) == count
    check_layout(figure)


class TestTradeoff:
    RESULTS = (
        MethodResult("pixel", "full precision", {"size": 13e6, "bits": 32, "mae": 0}),
        MethodResult("pixel", "linear", {"size": 1.75e6, "bits": 4.3, "mae": 39, "psnr": 13}),
        MethodResult("pixel", "closed form", {"size": 1.76e6, "bits": 4.4, "mae": 4, "psnr": 33}),
        MethodResult("latent", "closed form", {"size": 3.7e6, "bits": 4.4, "mae": 3, "psnr": 32}),
    )

    def points(self, axes) -> list[tuple[float, float, str]]:
        return [(*line.get_xydata()[0], line.get_marker()) for line in axes.lines if len(line.get_xdata())]

    def test_a_panel_for_each_model_and_a_marker_for_each_method(self):
        figure = draw_tradeoff(self.RESULTS)
        assert titles(figure) == ["pixel", "latent"] and legend(figure) == ["linear", "closed form"]
        pixel, latent = figure.axes
        (a, b), (c,) = self.points(pixel), self.points(latent)
        assert (
            a[:2] == pytest.approx((1.75, 13))
            and b[:2] == pytest.approx((1.76, 33))
            and c[:2] == pytest.approx((3.7, 32))
        )
        assert a[2] != b[2] == c[2]
        assert pixel.get_xlabel() == "file of the network [MB]" and pixel.get_ylabel() == "PSNR to full precision [dB]"
        assert pixel.get_xlim()[0] == 0 and pixel.get_xlim()[1] > 1.8
        check_layout(figure)

    def test_other_numbers(self):
        extra = [MethodResult("pixel", f"method {i}", {"calls": 1e9 * i, "fid": 3.0 + i}) for i in range(1, 9)]
        figure = draw_tradeoff([*self.RESULTS, *extra], "fid", "calls")
        (axes,) = figure.axes
        assert axes.get_xlabel() == "calls" and axes.get_ylabel() == "fid" and len(self.points(axes)) == 8
        check_layout(figure)
        assert len(self.points(draw_tradeoff(self.RESULTS, "mae", "bits").axes[0])) == 3, "full precision too"

    def test_evaluations_say_what_their_metrics_are_called(self):
        title = "FD on emoji-classifier features (not FID), 40 images"
        numbers = {"frechet": 3.0, "bops": 2e12, "step_bops": 1e11}
        found = [MethodResult(f"{i}.yml", "w4", numbers, {"frechet": f"{title}{i}"}) for i in range(2)]
        figure = draw_tradeoff(found, "frechet", "bops")
        for i, axes in enumerate(figure.axes):
            assert axes.get_ylabel().replace("\n", " ") == f"{title}{i}"
            assert axes.get_xlabel() == "bit operations per image [T]" and self.points(axes)[0][0] == pytest.approx(2)
        check_layout(figure)
        (axes,) = draw_tradeoff(found[:1], "frechet", "step_bops").axes
        assert axes.get_xlabel() == "bit operations per step [T]" and self.points(axes)[0][0] == pytest.approx(0.1)

    def test_three_models(self):
        third = MethodResult("third", "linear", {"size": 1e6, "psnr": 3})
        figure = draw_tradeoff([*self.RESULTS, third])
        assert titles(figure) == ["pixel", "latent", "third"]
        check_layout(figure)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_with_their_differences(channels):
    reference = torch.arange(2 * channels * 64, dtype=torch.uint8).reshape(2, channels, 8, 8) % 120
    compared = ComparedImages(reference, {"w4a8": reference + 9, "w8a8": reference + 1})
    figure = draw_images(compared)
    assert titles(figure) == [
        "full precision",
        "w4a8",
        "w4a8: 64 x difference to full precision, grey where there is none",
        "w8a8",
        "w8a8: 64 x difference to full precision, grey where there is none",
    ]
    sheets = [np.atleast_3d(axes.images[0].get_array()) for axes in figure.axes]
    for sheet, images in zip(sheets, [reference, reference + 9, None, reference + 1, compared.enlarged("w8a8")]):
        if images is not None:  # two images of 8 x 8 side by side, with 2 pixels around each
            np.testing.assert_array_equal(sheet[2:10, 2:10], images[0].permute(1, 2, 0))
            np.testing.assert_array_equal(sheet[2:10, 12:20], images[1].permute(1, 2, 0))
    assert (sheets[4][2:10, 2:10] == 192).all() and figure.axes[0].images[0].get_clim() == (0, 255)
    check_layout(figure)


STEPS = tuple(sorted(map(int, TIMESTEPS)))
MEASURED = Measurement(
    timesteps=STEPS,
    calls=tuple(range(len(STEPS), 0, -1)),
    forward=tuple(10.0 ** (2 - t / 200) for t in STEPS),
    signal=(16.0,) * len(STEPS),
    errors={bits: ((4.0 ** (8 - bits), 1.0, 1.0),) * len(STEPS) for bits in (4, 6, 8)},
    bops={4: 4, 6: 6, 8: 8},
    images=1,
)
SPECTRUM = Spectrum((0.0, 950.0), (0.1, 1.0), (0.2, 2.0), (0.4, 4.0))


class TestBits:
    """At 950 there is one call, at each step below one more; the error of 4 bits is twice that of 6, of these of 8."""

    @pytest.mark.parametrize("ratio", ["norm", "power"])
    def test_ratios_of_the_widths_and_of_the_forward_process(self, ratio):
        choice = Choice.by(SignalToNoise(ratio), MEASURED, None)
        figure = draw_bits(choice)
        above, below = figure.axes
        four, six, eight, forward = (line.get_ydata() for line in above.lines)
        for shown, bits in ((four, 4), (six, 6), (eight, 8)):
            assert list(shown) == MEASURED.snr(bits, ratio)[::-1], "from the noisiest step on"
        assert list(forward) == list(MEASURED.forward[::-1]) and above.get_yscale() == "log"
        assert list(below.lines[0].get_ydata()) == list(choice.bits[::-1])
        assert legend(figure) == ["SNR$^Q$, 4 bits", "SNR$^Q$, 6 bits", "SNR$^Q$, 8 bits", "SNR$^F$"]
        assert [tick.get_text() for tick in below.get_xticklabels()][:2] == ["950", "800"]
        assert titles(figure)[0].endswith(f"{choice.share:.3f} of the BOPs")
        check_layout(figure)

    def test_predicted_errors_within_a_budget(self):
        choice = Choice.by(BopsBudget(0.7), MEASURED, SPECTRUM)
        figure = draw_bits(choice)
        above, below = figure.axes
        for line, bits in zip(above.lines, (4, 6, 8), strict=True):
            assert list(line.get_ydata()) == MEASURED.image_errors(bits, SPECTRUM)[::-1]
        assert above.get_ylabel() == "predicted squared error" and legend(figure) == ["4 bits", "6 bits", "8 bits"]
        assert list(below.get_yticks()) == [4, 6, 8]
        check_layout(figure)


class TestCorrection:
    def test_lines_and_intervals_are_those_of_the_table(self):
        table = make_table("bias", "variance")
        figure = draw_correction(table)
        slope, bias, std = figure.axes
        for axes, name in ((slope, "slope"), (bias, "bias")):
            values = getattr(table, name)
            np.testing.assert_allclose([line.get_ydata() for line in axes.lines], values.T)
        extent = std.collections[0].get_paths()[0].get_extents()
        assert (extent.ymin, extent.ymax) == pytest.approx((0.1 * (1 - 0.196), 0.4 * (1 + 0.196)))
        assert titles(figure) == ["slope, off", "bias, on", "residual deviation, on"]
        assert legend(figure) == ["channel 0", "channel 1"]
        check_layout(figure)

    def test_a_slope_of_all_channels_is_one_line(self):
        table = make_table("slope")
        same = replace(
            table, slope=table.slope[:, :1].expand(-1, 2), slope_error=table.slope_error[:, :1].expand(-1, 2)
        )
        assert len(draw_correction(same).axes[0].lines) == 1
