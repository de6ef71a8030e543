"""Engines for a network: name -> what it makes of the network, called with a batch; used by backends.py."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from subjects import Inputs
from torch import Tensor, nn

from qdiff.backends import execute
from qdiff.calls import Call
from qdiff.quant_model import QuantModel

Engine = Callable[..., Tensor]


@dataclass(frozen=True)
class Given:
    """What engines are made of; a network is made by the engine that needs it.

    Args:
        network: makes the network in full precision.
        quantized: loads the quantized network.
        batch: inputs of a call.
        samples: inputs to calibrate on.
    """

    network: Callable[[], nn.Module]
    quantized: Callable[[], QuantModel]
    batch: Inputs
    samples: Inputs


def eager(given: Given) -> Engine:
    """Return the network as it is."""
    return given.network()


def channels_last(given: Given) -> Engine:
    """Return the network with its weights and x_t in the layout of channels last."""
    network = given.network().to(memory_format=torch.channels_last)
    images = given.batch[0].ndim == 4
    return lambda x, *others: network(x.contiguous(memory_format=torch.channels_last) if images else x, *others)


def bfloat16(given: Given) -> Engine:
    """Return the network under autocast to bfloat16, channels last."""
    network = channels_last(given)

    def call(*inputs: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return network(*inputs).float()

    return call


def compiled(make: Callable[[Given], Engine], given: Given) -> Engine:
    """Return what torch.compile makes of an engine."""
    return torch.compile(make(given))


def simulated(given: Given) -> Engine:
    """Return the quantized network, simulated in floating point, its weights packed."""
    return given.quantized()


def ours(backend: str, given: Given) -> Engine:
    """Return the quantized network, executed by one of our backends."""
    network, report = execute(given.quantized(), backend, Call(given.batch))
    print(f"    ours, {backend}: {'; '.join(report)}", flush=True)
    return network


def openvino(precision: str, given: Given) -> Engine:
    """Return what OpenVINO compiles of the network, at a precision of its own."""
    return _in_openvino(_converted(given), given.batch, precision)


def nncf(given: Given) -> Engine:
    """Return OpenVINO's own int8 network, quantized after training by NNCF."""
    import nncf

    rows = zip(*(x.split(1) for x in given.samples))
    data = nncf.Dataset([tuple(x.numpy() for x in row) for row in rows])
    return _in_openvino(nncf.quantize(_converted(given), data, subset_size=len(given.samples[0])), given.batch, "f32")


def _converted(given: Given):
    import openvino

    return openvino.convert_model(given.network(), example_input=given.batch)


def _in_openvino(model, batch: Inputs, precision: str) -> Engine:
    import openvino

    model.reshape({port: list(x.shape) for port, x in zip(model.inputs, batch)})  # faster than any batch
    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    request = openvino.compile_model(model, "CPU", settings).create_infer_request()
    return lambda *inputs: torch.from_numpy(next(iter(request.infer([x.numpy() for x in inputs]).values())).copy())


def onnxruntime(given: Given) -> Engine:
    """Return what ONNX Runtime makes of the network in float32."""
    import onnxruntime as ort

    data = io.BytesIO()
    torch.onnx.export(given.network(), given.batch, dynamo=True, verbose=False).save(data)
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(data.getvalue(), options, providers=["CPUExecutionProvider"])
    names = [x.name for x in session.get_inputs()]
    return lambda *inputs: torch.from_numpy(session.run(None, dict(zip(names, (x.numpy() for x in inputs))))[0])


ENGINES: dict[str, Callable[[Given], Engine]] = {
    "FP32 eager": eager,
    "FP32 channels-last": channels_last,
    "BF16 autocast": bfloat16,
    "torch.compile FP32": partial(compiled, channels_last),
    "torch.compile BF16": partial(compiled, bfloat16),
    "OpenVINO FP32": partial(openvino, "f32"),
    "OpenVINO BF16": partial(openvino, "bf16"),
    "OpenVINO INT8 (NNCF)": nncf,
    "ONNX Runtime FP32": onnxruntime,
    "ours, simulated": simulated,
    "ours, torch": partial(ours, "torch"),
    "ours, openvino": partial(ours, "openvino"),
    "ours, onnxruntime": partial(ours, "onnxruntime"),
}
