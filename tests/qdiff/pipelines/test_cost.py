"""What a run takes, against what a run took."""

from pathlib import Path

import pytest

import qdiff
from qdiff.block_recon import Schedule
from qdiff.calibration import measure
from qdiff.errors import UserError
from qdiff.pipelines.calibrate import Calibrate
from qdiff.pipelines.calibration_set import DataSettings
from qdiff.pipelines.cost import measured_cost
from qdiff.pipelines.methods import learning, uniform_policy
from qdiff.pipelines.pipeline import Pipeline
from tests.tiny import write_tiny

STEPS = 4


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def pipeline(config) -> Pipeline:
    return qdiff.load_pipeline(config, steps=STEPS, device="cpu", batch_size=2)


def calibrate(method: str, act_bits: int | None = 8, memory: int | None = 2**28) -> Calibrate:
    settings = learning(method, 4, Schedule(2, 1e-2), Schedule(2, 1e-3) if act_bits else None)
    return Calibrate(uniform_policy(method, 4, act_bits, split=True), settings, DataSettings(2, 3), memory)


def test_full_precision_is_only_sampled(pipeline):
    cost = measured_cost(pipeline, None)
    weights = 4 * sum(x.numel() for x in pipeline.network.parameters())
    assert cost.image > 0 and (cost.calibration, cost.network_file, cost.captured_files) == (0, 0, 0)
    assert weights < cost.memory
    more = measured_cost(pipeline.with_sampling(batch_size=8), None).memory
    assert more - weights == pytest.approx(4 * (cost.memory - weights), rel=0.01)
    pipeline.network.requires_grad_(False)
    assert measured_cost(pipeline, None).memory == cost.memory, "nothing is kept for gradients"
    assert cost.inputs == 4 * 3 * 8 * 8 + 8, "x, and the timestep in 64 bits"


def test_the_file_of_a_calibration(config, pipeline, tmp_path):
    cost = measured_cost(pipeline, calibrate("linear"))
    again = qdiff.load_pipeline(config, steps=STEPS, device="cpu")
    options = {"timesteps": 2, "samples": 3, "batch_size": 4, "memory_bytes": 2**28}
    qdiff.quantize(again, weight_bits=4, act_bits=8, split=True, method="linear", **options).save(tmp_path / "w4")
    assert cost.network_file == pytest.approx((tmp_path / "w4").stat().st_size, rel=0.15), "the header is not counted"


def test_learning_takes_time_and_memory(pipeline, config, monkeypatch):
    monkeypatch.setattr(measure, "_iteration_bytes", lambda *_: 10**9)
    linear, learned = measured_cost(pipeline, calibrate("linear")), measured_cost(_fresh(config), calibrate("qdiff"))
    assert linear.calibration == 0 < learned.calibration
    assert 10**9 < learned.memory < 1.2e9 and linear.memory < 1e8
    assert (linear.captured_files, learned.captured_files) == (0, 0)
    assert measured_cost(_fresh(config), calibrate("qdiff", memory=0)).captured_files > 0


def test_data_are_collected_where_they_are_needed():
    assert calibrate("linear").collects and calibrate("qdiff", None).collects
    assert not calibrate("linear", None).collects and not calibrate("squant", None).collects


def test_settings_that_do_not_fit_are_refused(pipeline):
    with pytest.raises(UserError, match="5"):
        settings = Calibrate(uniform_policy("linear", 4, 8), learning("linear", 4, None, None), DataSettings(5, 1))
        measured_cost(pipeline, settings)


def _fresh(config: Path) -> Pipeline:
    return qdiff.load_pipeline(config, steps=STEPS, device="cpu", batch_size=2)
