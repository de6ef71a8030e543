"""Backends: what computes a quantized network with integers, in place of the simulation in floating point."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from qdiff.calls import Call
from qdiff.errors import UserError
from qdiff.execution import execute_integers, executed_leaves, has_vnni
from qdiff.execution.machine import lacking
from qdiff.export.engines import ENGINES
from qdiff.export.onnx import export_graph
from qdiff.export.packages import lacking_packages
from qdiff.export.session import in_float, in_integers
from qdiff.quant_model import QuantModel

SIMULATED, AUTO = "simulated", "auto"

Made = tuple[nn.Module, list[str]]  # the executed network, and lines that say what of it computes with integers


@dataclass(frozen=True)
class Backend:
    """A backend.

    Args:
        make: makes the executed network of a calibrated one, which is used up, with arguments of a call of it.
        lacking: says in a line what this machine lacks for it, and how to get it; None if nothing.
        phases: whether it serves activations that are quantized by phase.
    """

    make: Callable[[QuantModel, Call], Made]
    lacking: Callable[[], str | None]
    phases: bool = False


def execute(model: QuantModel, backend: str, example: Call) -> Made:
    """Make the network that a backend executes of a calibrated one.

    Args:
        model: on the CPU; it is used up and must not be called afterwards.
        backend: a name in `BACKENDS`.
        example: arguments of the network for any number of samples; their values do not matter.

    Returns:
        a module that is called as the network is, and lines that say what of it computes with integers.

    Raises:
        UserError: this machine lacks the backend, or the backend cannot execute this network.
    """
    check(backend, phases=bool(model.policy.act_phases))
    network, report = BACKENDS[backend].make(model, example)
    return network, report if has_vnni() else [
        *report,
        "this processor has no VNNI: integers are slower than on others",
    ]


def check(backend: str, *, phases: bool) -> None:
    """Check that this machine has a backend, and that it serves a network.

    Args:
        backend: a name in `BACKENDS`.
        phases: whether activations are quantized by phase.

    Raises:
        UserError: it does not.
    """
    if missing := BACKENDS[backend].lacking():
        raise UserError(f"--backend {backend}: {missing}")
    if phases and not BACKENDS[backend].phases:
        raise UserError(f"--backend {backend} serves no activations with bits or ranges by step: use --backend torch")


def resolved(backend: str, *, phases: bool) -> str:
    """Return the name of a backend; "auto" means the first, fastest one of `BACKENDS` that this machine has.

    Args:
        backend: a name in `NAMES`.
        phases: whether activations are quantized by phase, which not every backend serves.

    Raises:
        UserError: it has none.
    """
    if backend != AUTO:
        return backend
    for name, known in BACKENDS.items():
        if known.lacking() is None and (known.phases or not phases):
            return name
    raise UserError(
        "--backend auto: this machine has no backend: pip install 'qdiff[openvino]', or leave --backend out"
    )


def _torch(model: QuantModel, example: Call) -> Made:
    leaves = executed_leaves(execute_integers(model))
    reasons = Counter((leaf.arithmetic, leaf.reason) for leaf in leaves if leaf.reason)
    report = [f"{len(leaves) - reasons.total()} of {len(leaves)} layers and attention products in int8"]
    return model, [*report, *(f"{count} in {dtype}: {why}" for (dtype, why), count in reasons.items())]


def _lacking_engine(name: str) -> str | None:
    if missing := lacking_packages(name):
        return missing
    if has_vnni():
        return None
    return "this processor has no VNNI, without which sums of products overflow in 16 bits: use --backend torch"


def _engine(name: str, model: QuantModel, example: Call) -> Made:
    session = ENGINES[name](export_graph(model, example), threads=torch.get_num_threads())
    example(session)  # engines settle what they execute when they are first called
    executed = session.executed()
    kinds = Counter((x.kind, x.dtype) for x in in_float(executed))
    return session, [in_integers(executed), *(f"{count} {kind} in {dtype}" for (kind, dtype), count in kinds.items())]


BACKENDS = {  # fastest first
    "openvino": Backend(partial(_engine, "openvino"), partial(_lacking_engine, "openvino")),
    "torch": Backend(_torch, lacking, phases=True),
    "onnxruntime": Backend(partial(_engine, "onnxruntime"), partial(_lacking_engine, "onnxruntime")),
}
NAMES = (*BACKENDS, AUTO)
