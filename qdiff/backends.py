"""Backends: what computes a quantized network with integers, in place of the simulation in floating point."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

from torch import nn

from qdiff.calls import Call
from qdiff.errors import UserError
from qdiff.execution import execute_integers, executed_leaves, has_vnni
from qdiff.execution.machine import why_not
from qdiff.export.sessions import OnnxRuntimeSession, OpenVinoSession
from qdiff.quant_model import QuantModel

SIMULATED, AUTO = "simulated", "auto"


@dataclass(frozen=True)
class Executed:
    """A network that computes with integers.

    Args:
        backend: the name of the backend.
        network: called as the quantized network is.
        report: lines that say what of it computes with integers.
    """

    backend: str
    network: nn.Module
    report: list[str]


@dataclass(frozen=True)
class Backend:
    """A backend.

    Args:
        execute: makes the executed network of a calibrated one, which is used up, with arguments of a call of it, and
            lines that say what of it computes with integers.
        missing: returns what this machine lacks for it; None if nothing.
    """

    execute: Callable[[QuantModel, Call], tuple[nn.Module, list[str]]]
    missing: Callable[[], str | None]


def execute(model: QuantModel, backend: str, example: Call) -> Executed:
    """Make the network that a backend executes of a calibrated one.

    Args:
        model: on the CPU; it is used up and must not be called afterwards.
        backend: a name in `BACKENDS`, or "auto" for the first of them that this machine has.
        example: arguments of the network for any number of samples; their values do not matter.

    Raises:
        UserError: the backend is not installed, or cannot execute this network on this machine.
    """
    name = resolved(backend)
    if missing := BACKENDS[name].missing():
        raise UserError(f"--backend {name}: {missing}")
    return Executed(name, *BACKENDS[name].execute(model, example))


def resolved(backend: str) -> str:
    """Return the name of a backend; "auto" means the first of `BACKENDS`, fastest first, that this machine has.

    Raises:
        UserError: it has none.
    """
    if backend != AUTO:
        return backend
    for name, known in BACKENDS.items():
        if known.missing() is None:
            return name
    raise UserError(f"--backend auto: this machine has none of {', '.join(BACKENDS)}: pip install 'qdiff[openvino]'")


def _torch(model: QuantModel, example: Call) -> tuple[nn.Module, list[str]]:
    leaves = executed_leaves(model := execute_integers(model))
    return model, _counted([(leaf.path, leaf.arithmetic, leaf.reason) for leaf in leaves])


# Fastest first
BACKENDS = {
    "openvino": Backend(_openvino, missing_openvino),
    "torch": Backend(_torch, missing_integers),
    "onnxruntime": Backend(_onnxruntime, missing_onnxruntime),
}
NAMES = (*BACKENDS, AUTO)
