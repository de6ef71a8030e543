"""Comparison of an exported network with the simulated one: the same numbers, and how fast."""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from qdiff.calls import Call
from qdiff.export.session import Executed, Session
from qdiff.functional import relative_squared_error
from qdiff.quant_model import QuantModel


@dataclass(frozen=True)
class Comparison:
    """How an exported network differs from the simulated one. Errors are relative, |a - b| / |b|.

    Attributes:
        error: of the exported network to the simulated one.
        rounding: of the simulated network in float32 to itself in float64. One code that is rounded to the other side
            changes all that follow, so that whole networks agree no better than this.
        quantization: of the simulated network to full precision; None without its weights.
        exported_quantization: of the exported network to full precision; None without its weights.
        simulated_seconds, exported_seconds: of a call, median.
        executed: what the engine executes, and in which type.
    """

    error: float
    rounding: float
    quantization: float | None
    exported_quantization: float | None
    simulated_seconds: float
    exported_seconds: float
    executed: Sequence[Executed]


def check_exported(
    model: QuantModel,
    session: Session,
    call: Call,
    *,
    full_precision: Callable[..., Tensor] | None = None,
    repetitions: int = 5,
) -> Comparison:
    """Compare an exported network with the simulated one on the same inputs.

    Args:
        model: the simulated network.
        session: the exported one.
        call: arguments, as the sampler gives them.
        full_precision: the network in full precision, if its weights are there.
        repetitions: timed calls of each, 1 or more, in turn, after one that is not timed.
    """
    with torch.no_grad():
        wanted, found = call(model), call(session)
        exact = call.map(_double)(copy.deepcopy(model).double())
        reference = None if full_precision is None else call(full_precision)
        seconds = [(_seconds(call, model), _seconds(call, session)) for _ in range(repetitions)]
    simulated, exported = (median(times) for times in zip(*seconds))
    return Comparison(
        error=_error(found, wanted),
        rounding=_error(wanted, exact),
        quantization=None if reference is None else _error(wanted, reference),
        exported_quantization=None if reference is None else _error(found, reference),
        simulated_seconds=simulated,
        exported_seconds=exported,
        executed=session.executed(),
    )


def _error(found: Tensor, wanted: Tensor) -> float:
    return relative_squared_error(found, wanted.to(found)) ** 0.5


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def _seconds(call: Call, network: Callable[..., Tensor]) -> float:
    start = time.perf_counter()
    call(network)
    return time.perf_counter() - start
