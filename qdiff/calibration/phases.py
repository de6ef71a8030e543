"""Calibration data divided by the phases of a policy."""

import torch

from qdiff.calibration.data import CalibrationSet
from qdiff.errors import UserError
from qdiff.quant_model import QuantModel


def by_phase(model: QuantModel, data: CalibrationSet) -> list[CalibrationSet]:
    """Return the samples of each phase of the model's policy, in order; `data` itself if it has one phase.

    Raises:
        UserError: a phase has no samples.
        ValueError: the timestep of the samples is not known; see `Adapter.timestep`.
    """
    if len(model.policy.phases) == 1:
        return [data]
    phases = torch.tensor(model.phases_of(data.call))
    rows = [(phases == phase).nonzero().flatten() for phase in model.policy.phases]
    if missing := [model.policy.timesteps_of(phase) for phase, found in enumerate(rows) if not len(found)]:
        raise UserError(
            f"the calibration data have no sample at the timesteps {' and '.join(missing)}, where activations have "
            "ranges of their own: raise --cali_st, or give other data with --cali_data_path"
        )
    return [data.at(found) for found in rows]


def unmixed(model: QuantModel, data: CalibrationSet) -> list[CalibrationSet]:
    """Return `data` in parts whose samples may share a batch: by phase where activations are quantized by phase now."""
    return by_phase(model, data) if model.has_phases else [data]
