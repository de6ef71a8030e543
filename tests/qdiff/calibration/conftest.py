import pytest

from qdiff.calibration.data import CalibrationSet
from qdiff.quant_model import QuantModel
from tests.qdiff.calibration import networks


@pytest.fixture(params=networks.CASES)
def golden_job(request) -> tuple[QuantModel, CalibrationSet]:
    """A network with quantized activations, and its data."""
    return networks.golden_job(request.param)
