"""Exported networks in OpenVINO."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from qdiff.export.onnx import read_graph, serialized
from qdiff.export.packages import needed
from qdiff.export.session import FLOAT, Executed, Session

if TYPE_CHECKING:
    import onnx_ir
    import openvino

KEPT = 2  # compiled batches: the usual one and that of the remainder
KINDS = {"Convolution": "convolutions", "FullyConnected": "linear layers", "MatMul": "attention products"}
INTEGERS = {"i8", "u8"}


class OpenVINOSession(Session):
    """A network that OpenVINO executes; each batch size is compiled when it first comes.

    Args:
        graph: as `qdiff.export.onnx` makes or reads it, or the path of its file.
        threads: of the CPU; None takes all.
        precision: of what is not in integers, "f32", the arithmetic of the simulated network, or "bf16", which is
            faster on some processors and less accurate.

    Raises:
        UserError: OpenVINO is not installed, or the file is no ONNX graph.
    """

    engine = "openvino"

    def __init__(self, graph: "onnx_ir.Model | str | Path", *, threads: int | None = None, precision: str = "f32"):
        with needed("openvino"):
            import openvino
        model = read_graph(graph) if isinstance(graph, str | Path) else graph
        self._core = openvino.Core()
        self._model = self._core.read_model(model=serialized(model))
        self._settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision, "NUM_STREAMS": 1}
        if threads:
            self._settings["INFERENCE_NUM_THREADS"] = threads
        self._requests: dict[tuple[tuple[int, ...], ...], openvino.InferRequest] = {}
        super().__init__({x.any_name: _torch_type(x.element_type.to_dtype()) for x in self._model.inputs})

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Execute the network; arrays by name."""
        request = self._request(tuple(x.shape for x in inputs.values()))
        (found,) = request.infer([np.ascontiguousarray(x) for x in inputs.values()]).values()
        return found.copy()  # the request writes the next result to the same memory

    def _request(self, shapes: tuple[tuple[int, ...], ...]) -> "openvino.InferRequest":
        """Return the request for these shapes: static shapes are faster than dynamic ones."""
        if shapes not in self._requests:
            while len(self._requests) >= KEPT:
                self._requests.pop(next(iter(self._requests)))
            model = self._model.clone()
            model.reshape(dict(zip(model.inputs, map(list, shapes))))
            self._requests[shapes] = self._core.compile_model(model, "CPU", self._settings).create_infer_request()
        return self._requests[shapes]

    def executed(self) -> list[Executed]:
        """Return the convolutions, linear layers and products of the graph that was executed last.

        Raises:
            RuntimeError: nothing has been executed yet.
        """
        if not self._requests:
            raise RuntimeError("nothing has been executed yet, so that there is no graph of it")
        request = list(self._requests.values())[-1]
        nodes = request.get_compiled_model().get_runtime_model().get_ordered_ops()
        about = [{key: str(value.astype(str)) for key, value in node.get_rt_info().items()} for node in nodes]
        return [
            Executed(KINDS[x["layerType"]], x.get("originalLayersNames", ""), _dtype(x["runtimePrecision"]))
            for x in about
            if x.get("layerType") in KINDS
        ]


def _dtype(precision: str) -> str:
    return "int8" if precision in INTEGERS else {"f32": FLOAT, "bf16": "bfloat16"}.get(precision, precision)


def _torch_type(dtype: Any) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype
