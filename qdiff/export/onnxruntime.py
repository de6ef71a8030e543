"""Exported networks in ONNX Runtime."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from qdiff.export.integer_operators import with_integer_operators, with_zero_points
from qdiff.export.onnx import read_graph, serialized
from qdiff.export.packages import needed
from qdiff.export.session import FLOAT, Executed, Session

if TYPE_CHECKING:
    import onnx_ir
    import onnxruntime

TYPES = {"tensor(float)": torch.float32, "tensor(int64)": torch.int64, "tensor(int32)": torch.int32}
ERRORS_ONLY = 3
EXACT_MATRICES = ("session.qdq_matmulnbits_accuracy_level", "1")  # float32; by default it rounds activations to 8 bits
INTEGERS = {  # operators -> what they compute; of matrices, a constant tells
    "convolutions": ("ConvInteger", "QLinearConv"),
    "matrices": ("MatMulInteger", "MatMulIntegerToFloat", "QLinearMatMul", "QGemm", "DynamicQuantizeMatMul"),
}
FLOATS = {
    "convolutions": ("Conv", "FusedConv", "NhwcFusedConv"),
    "matrices": ("MatMul", "Gemm", "FusedMatMul", "FusedGemm"),
}


class ONNXRuntimeSession(Session):
    """A network that ONNX Runtime executes on the CPU.

    Args:
        graph: as `qdiff.export.onnx` makes or reads it, or the path of its file.
        threads: of the CPU; None takes all.

    Raises:
        UserError: ONNX Runtime is not installed, or the file is no ONNX graph.
    """

    engine = "onnxruntime"

    def __init__(self, graph: "onnx_ir.Model | str | Path", *, threads: int | None = None):
        self._source, self._threads = graph, threads
        self._session = self._opened()
        super().__init__({x.name: TYPES[x.type] for x in self._session.get_inputs()})

    def _opened(self, **options: Any) -> "onnxruntime.InferenceSession":
        with needed("onnx"):
            import onnxruntime
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = ERRORS_ONLY
        settings.intra_op_num_threads = self._threads or 0
        settings.add_session_config_entry(*EXACT_MATRICES)
        for name, value in options.items():
            setattr(settings, name, value)
        graph = read_graph(self._source) if isinstance(self._source, str | Path) else self._source.clone()
        with_integer_operators(graph.graph)
        with_zero_points(graph.graph)
        return onnxruntime.InferenceSession(serialized(graph), settings, providers=["CPUExecutionProvider"])

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Execute the network; arrays by name."""
        (found,) = self._session.run(None, dict(inputs))
        return found

    def executed(self) -> list[Executed]:
        """Return the convolutions, linear layers and products of the graph as the engine has changed it."""
        import onnx_ir as ir

        with TemporaryDirectory() as folder:
            path = Path(folder) / "changed.onnx"
            self._opened(optimized_model_filepath=str(path))
            graph = ir.load(path).graph
            return [found for node in graph if (found := _executed(node))]


def _executed(node: "onnx_ir.Node") -> Executed | None:
    for operators, dtype in ((INTEGERS, "int8"), (FLOATS, FLOAT)):
        for kind, names in operators.items():
            if node.op_type in names:
                return Executed(_kind(node) if kind == "matrices" else kind, node.name or "", dtype)
    return None


def _kind(node: "onnx_ir.Node") -> str:
    """Tell a linear layer, one of whose matrices is constant, from a product of activations."""
    return "linear layers" if any(_is_constant(x) for x in node.inputs[:2]) else "attention products"


def _is_constant(x: Any) -> bool:
    """Return whether a value comes from constants alone, as a dequantized weight does."""
    if x is None or x.const_value is not None:
        return True
    node = x.producer()
    return node is not None and all(map(_is_constant, node.inputs))
