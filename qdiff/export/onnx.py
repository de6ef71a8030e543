"""Quantized networks as ONNX graphs with QuantizeLinear and DequantizeLinear."""

import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_map

from qdiff.calls import Call
from qdiff.errors import UserError
from qdiff.export.concats import fold_splits, push_concats
from qdiff.export.leaves import with_exported_leaves
from qdiff.export.linear_quantization import OPSET
from qdiff.export.norms import lower_norms
from qdiff.export.packages import needed
from qdiff.export.weights import pack_weights, widen_weights
from qdiff.files.atomic import replacing
from qdiff.files.refusals import explaining
from qdiff.quant_model import QuantModel

if TYPE_CHECKING:
    import onnx_ir

LIMIT = 2**31 - 1  # bytes of a protobuf message


def export_graph(model: QuantModel, example: Call) -> "onnx_ir.Model":
    """Return the graph of a quantized network, with int8 weights and any batch.

    Args:
        model: calibrated, or with activations in floating point; stays as it is.
        example: arguments of the network, on any device; their values and number of samples do not matter. Inputs of
            the graph have the names of the network's parameters.

    Raises:
        UserError: a package is missing, activations are quantized by phase, or one is not calibrated.
    """
    _check(model)
    with needed("onnx"):
        import onnxscript  # noqa: F401
    network = with_exported_leaves(model)
    # two samples, because torch.export takes a batch of one for a constant
    two = example.map(lambda x: torch.zeros(2, *x.shape[1:], dtype=x.dtype))
    args, kwargs = two.tree
    samples = {id(x) for x in two.tensors}
    shapes = tree_map(lambda x: {0: torch.export.Dim.DYNAMIC} if id(x) in samples else None, _named(network, two))
    with torch.no_grad(), _silent():
        program = torch.export.export(network, args, kwargs, dynamic_shapes=shapes, strict=False)
        exported = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False)
    assert exported is not None
    graph = exported.model
    fold_splits(graph.graph)
    lower_norms(graph.graph)
    push_concats(graph.graph)
    graph.producer_name = "qdiff"
    return graph


def _named(network: torch.nn.Module, call: Call) -> dict[str, Any]:
    """Return the arguments of a call by the names of the network's parameters."""
    return dict(inspect.signature(network.forward).bind(*call.args, **call.kwargs).arguments)


def _check(model: QuantModel) -> None:
    if model.policy.act_phases:
        raise UserError(
            "activations are quantized by phase, which one graph with constant step sizes cannot express: "
            "give a file without phases"
        )
    for site in model.sites():
        if site.quantizer is None:
            raise UserError(f"{site.path}.{site.name} is not calibrated: give a calibrated file")


@contextmanager
def _silent() -> Iterator[None]:
    """Keep the exporter's remarks about itself from the user."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def export_onnx(model: QuantModel, example: Call, path: str | Path, *, packed: bool = False) -> None:
    """Write the graph of a quantized network.

    Args:
        model, example: see `export_graph`.
        path: see `write_graph`.
        packed: store weights of 4 bits and fewer as uint4, half as large. Engines compute with these in floating point
            unless they are widened first, as `read_graph` does.

    Raises:
        UserError: as `export_graph` and `write_graph`.
    """
    graph = export_graph(model, example)
    if packed:
        pack_weights(graph.graph)
    write_graph(graph, path)


def write_graph(graph: "onnx_ir.Model", path: str | Path) -> None:
    """Check a graph and write it, complete in one file; a failure leaves the old file, if any.

    Args:
        graph: as `export_graph` returns it.
        path: a file there is replaced.

    Raises:
        UserError: the file cannot be written, or the graph is too large for one.
    """
    import onnx

    data = serialized(graph)
    onnx.checker.check_model(data, full_check=True)
    with explaining(Path(path), "--out"), replacing(Path(path)) as partial:
        partial.write_bytes(data)


def serialized(graph: "onnx_ir.Model") -> bytes:
    """Return the bytes of an ONNX file. Raises UserError where they exceed what the format can hold."""
    import onnx_ir as ir

    proto = ir.to_proto(graph)
    if (size := proto.ByteSize()) > LIMIT:
        raise UserError(
            f"the graph takes {size / 2**30:.1f} GiB, and an ONNX file holds 2 GiB: use fewer bits per weight"
        )
    return proto.SerializeToString()


def read_graph(path: str | Path) -> "onnx_ir.Model":
    """Read an ONNX file, with its weights widened to int8.

    Raises:
        UserError: it is missing or no ONNX graph.
    """
    with needed("onnx"):
        import onnx
        import onnx_ir as ir
    with explaining(Path(path), "FILE"):
        data = Path(path).read_bytes()
    try:
        proto = onnx.load_from_string(data)
        onnx.checker.check_model(proto)
    except Exception as e:  # of protobuf or of the checker, which share no base
        raise UserError(
            f"'{path}' is no ONNX graph ({str(e).splitlines()[0]}): give a file of python -m qdiff export"
        ) from e
    graph = ir.from_proto(proto)
    widen_weights(graph.graph)
    return graph
