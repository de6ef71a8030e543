import io
from types import SimpleNamespace

import pytest
from tqdm import tqdm

from qdiff.block_recon import Outcome, Schedule
from qdiff.calibration.plan import BlockPlan, Plan
from qdiff.calibration.settings import CalibrationSettings
from qdiff.pipelines.progress import CalibrationBar


def outcome(before: float, after: float) -> Outcome:
    return Outcome(before, after)


@pytest.fixture
def bar(monkeypatch):
    """The bar of a plan with two blocks, the second one three times the first, shown although nobody sees it."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("qdiff.pipelines.progress.tqdm", _visible(clock))
    blocks = [BlockPlan("a", 1, 1, 1, 1, 1.0, 1.0, 1.0), BlockPlan("b", 1, 1, 1, 1, 3.0, 4.0, 4.0)]
    settings = CalibrationSettings(1, Schedule(100, 1), None)
    with CalibrationBar(Plan(blocks, 0, settings, 1)) as shown:
        shown.clock = clock
        yield shown


def _visible(clock):
    class Visible(tqdm):
        def __init__(self, **options):
            super().__init__(**{**options, "disable": False, "file": io.StringIO()})
            self._time = lambda: clock.now
            self.start_t = self.last_print_t = 0.0

    return Visible


def shown(bar: CalibrationBar) -> str:
    return str(bar.bar)


def test_bar_names_block_losses_and_time_left_of_the_job(bar):
    """300 of 1200 estimated seconds took 60: the rest takes three times as long."""
    bar.start("a", "weights")
    assert "weights a" in shown(bar)
    bar.clock.now = 30.0
    bar.advance(50)
    assert "13%" in shown(bar) or "12%" in shown(bar)
    bar.clock.now = 60.0
    bar.advance(50)
    bar.finish("a", "weights", outcome(0.5, 0.25), resumed=False)
    bar.start("b", "weights")
    text = shown(bar)
    assert "weights b" in text and "25%" in text and "03:00 left" in text and "a loss 0.5 -> 0.25" in text
    bar.clock.now = 150.0
    bar.advance(50)
    bar.finish("b", "weights", outcome(0.5, 0.75), resumed=False)
    assert "100%" in shown(bar) and "b loss 0.5 -> 0.75, kept as it was" in shown(bar)


def test_time_left_does_not_count_what_an_earlier_run_did(bar):
    bar.start("a", "weights")
    bar.clock.now = 0.001
    bar.finish("a", "weights", outcome(2, 1), resumed=True)
    bar.start("b", "weights")
    assert "25%" in shown(bar)
    bar.clock.now = 30.0
    bar.advance(50)
    assert "00:30 left" in shown(bar)


def test_a_bar_that_is_not_shown():
    """Where the output goes to a file."""
    blocks = [BlockPlan("a", 1, 1, 1, 1, 1.0, 1.0, 1.0)]
    with CalibrationBar(Plan(blocks, 0, CalibrationSettings(1, Schedule(100, 1), None), 1)) as bar:
        bar.bar.close()
        bar.bar = tqdm(total=1, disable=True)
        for resumed in (True, False):
            bar.start("a", "weights")
            bar.advance(50)
            bar.finish("a", "weights", outcome(2, 1), resumed=resumed)
