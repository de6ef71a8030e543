"""The engines that execute exported networks, by name."""

from collections.abc import Callable

from qdiff.export.onnxruntime import ONNXRuntimeSession
from qdiff.export.openvino import OpenVINOSession
from qdiff.export.session import Session

# both are made from a graph, or the path of its file, and the keyword `threads`
ENGINES: dict[str, Callable[..., Session]] = {"openvino": OpenVINOSession, "onnxruntime": ONNXRuntimeSession}
