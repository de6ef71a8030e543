"""Engines for a network: name -> what it makes of the network, callable with a batch; used by backends.py."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial

import torch
from subjects import Inputs, Subject
from torch import Tensor

from qdiff.backends import execute
from qdiff.calls import Call

CALIBRATION = 50  # samples that NNCF calibrates on
Engine = Callable[..., Tensor]


def eager(subject: Subject) -> Engine:
    """Return the network as it is."""
    return subject.network


def channels_last(subject: Subject) -> Engine:
    """Return the network with its weights and x_t in the layout of channels last."""
    network = deepcopy(subject.network).to(memory_format=torch.channels_last)
    return lambda x, *others: network(x.contiguous(memory_format=torch.channels_last), *others)


def bfloat16(subject: Subject) -> Engine:
    """Return the network under autocast to bfloat16, channels last."""
    network = channels_last(subject)

    def call(*inputs: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return network(*inputs).float()

    return call


def compiled(make: Callable[[Subject], Engine], subject: Subject) -> Engine:
    """Return what torch.compile makes of an engine."""
    return torch.compile(make(subject))


def simulated(subject: Subject) -> Engine:
    """Return the quantized network, simulated in floating point."""
    return subject.quantized()


def ours(backend: str, subject: Subject) -> Engine:
    """Return the quantized network, executed by one of our backends."""
    return execute(subject.quantized(), backend, Call(subject.samples(subject.batch)))[0]


def openvino(precision: str, subject: Subject) -> Engine:
    """Return what OpenVINO compiles of the network, at a precision of its own."""
    import openvino

    return _compiled_openvino(openvino.convert_model(subject.network, example_input=_example(subject)), precision)


def nncf(subject: Subject) -> Engine:
    """Return OpenVINO's own int8 network, quantized by NNCF after training on 50 samples."""
    import nncf
    import openvino

    model = openvino.convert_model(subject.network, example_input=_example(subject))
    rows = zip(*(x.split(1) for x in subject.samples(CALIBRATION)))
    data = nncf.Dataset([tuple(x.numpy() for x in row) for row in rows])
    return _compiled_openvino(nncf.quantize(model, data, subset_size=CALIBRATION), "f32")


def _compiled_openvino(model, precision: str) -> Engine:
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled_model = openvino.compile_model(model, "CPU", settings)
    return lambda *inputs: torch.from_numpy(compiled_model([x.numpy() for x in inputs])[0].copy())


def onnxruntime(subject: Subject) -> Engine:
    """Return what ONNX Runtime makes of the network in float32."""
    import io

    import onnxruntime as ort

    program = torch.onnx.export(subject.network, subject.samples(subject.batch), dynamo=True, verbose=False)
    data = io.BytesIO()
    program.save(data)
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(data.getvalue(), options, providers=["CPUExecutionProvider"])
    names = [x.name for x in session.get_inputs()]
    return lambda *inputs: torch.from_numpy(session.run(None, dict(zip(names, (x.numpy() for x in inputs))))[0])


def _example(subject: Subject) -> Inputs:
    return subject.samples(subject.batch)


ENGINES: dict[str, Callable[[Subject], Engine]] = {
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
