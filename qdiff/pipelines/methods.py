"""The ways to calibrate, by the names that flags and functions use: which ranges are searched, and what is learned."""

from collections.abc import Mapping
from typing import Any

from qdiff.adaptive_rounding import rate_for
from qdiff.block_recon import Schedule
from qdiff.calibration.settings import CalibrationSettings, ClosedForm
from qdiff.policy import QuantPolicy, QuantSpec

# method -> search for the ranges of activations
METHODS: Mapping[str, str] = {"qdiff": "mse", "gptq": "margin", "squant": "minmax", "linear": "minmax"}


def uniform_policy(
    method: str,
    weight_bits: int,
    act_bits: int | None = None,
    softmax_bits: int = 8,
    *,
    split: bool = False,
    symmetric: bool = False,
    symmetric_weights: bool = False,
    min_max: bool = False,
) -> QuantPolicy:
    """Return the policy of a method with the same bits in every layer.

    Args:
        method: one of `METHODS`.
        weight_bits, act_bits, softmax_bits, split: see `QuantPolicy`; `act_bits` None leaves activations as they are.
        symmetric, symmetric_weights: ranges of activations and of weights symmetric around zero.
        min_max: take activation ranges from the extremes, whatever the method does.
    """
    search = "minmax" if min_max else METHODS[method]
    act = None if act_bits is None else QuantSpec(act_bits, symmetric=symmetric, range_search=search)
    weight = QuantSpec(weight_bits, symmetric_weights, per_channel=True, range_search="minmax")
    return QuantPolicy(weight, act, softmax_bits, split)


def rounding_schedule(iterations: int, lr: float | None) -> Schedule:
    """Return the schedule of learned rounding; without a rate, the one that suits the number of iterations."""
    return Schedule(iterations, rate_for(iterations) if lr is None else lr)


def learning(
    method: str, batch_size: int, rounding: Schedule | None, steps: Schedule | None, **others: Any
) -> CalibrationSettings:
    """Return the calibration settings of a method.

    Args:
        method: one of `METHODS`.
        batch_size: samples per forward and iteration.
        rounding, steps: schedules of what "qdiff" learns, None for nothing.
        others: further `CalibrationSettings`.
    """
    learns = method == "qdiff"
    return CalibrationSettings(
        batch_size,
        rounding if learns else None,
        steps if learns else None,
        squant=method == "squant",
        closed_form=ClosedForm() if method == "gptq" else None,
        **others,
    )
