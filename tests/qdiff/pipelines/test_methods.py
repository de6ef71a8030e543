"""The ways to calibrate: what each learns, and how it searches ranges."""

import pytest

from qdiff.block_recon import Schedule
from qdiff.calibration.settings import CalibrationSettings, ClosedForm
from qdiff.pipelines.methods import METHODS, learning, uniform_policy
from qdiff.policy import QuantPolicy, QuantSpec

W, A = Schedule(7, 1e-3), Schedule(5, 1e-4)
EXPECTED = {
    "qdiff": CalibrationSettings(3, W, A, seed=9),
    "gptq": CalibrationSettings(3, None, None, seed=9, closed_form=ClosedForm()),
    "squant": CalibrationSettings(3, None, None, seed=9, squant=True),
    "linear": CalibrationSettings(3, None, None, seed=9),
}


@pytest.mark.parametrize("method", METHODS)
def test_what_a_method_learns(method):
    assert learning(method, 3, W, A, seed=9) == EXPECTED[method]
    assert EXPECTED[method].changes_blocks == (method in {"qdiff", "gptq"})


@pytest.mark.parametrize(
    ("method", "search"), [("qdiff", "mse"), ("gptq", "margin"), ("squant", "minmax"), ("linear", "minmax")]
)
def test_how_a_method_searches_ranges(method, search):
    weight = QuantSpec(4, per_channel=True, range_search="minmax")
    assert uniform_policy(method, 4) == QuantPolicy(weight)
    found = uniform_policy(method, 4, 6, 16, split=True, symmetric=True)
    assert found == QuantPolicy(weight, QuantSpec(6, symmetric=True, range_search=search), 16, True)
    assert uniform_policy(method, 4, 6, min_max=True).act.range_search == "minmax"


def test_settings_are_described_as_before_there_were_others():
    """So that journals and files of earlier calibrations are still theirs."""
    described = EXPECTED["qdiff"].to_dict()
    assert described == {
        "batch_size": 3,
        "rounding": {"iterations": 7, "lr": 1e-3},
        "steps": {"iterations": 5, "lr": 1e-4},
        "p": 2.4,
        "range_samples": 256,
        "running_stat": False,
        "rs_sm_only": False,
        "seed": 9,
    }
    assert EXPECTED["gptq"].to_dict()["closed_form"] == {"columns": 4000}
    assert EXPECTED["squant"].to_dict() == EXPECTED["linear"].to_dict() | {"squant": True}
