"""`python -m qdiff export`: write the network of a quantized file as an ONNX graph, and compare the two."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qdiff.cli.flags import check_new
from qdiff.cli.parser import Parser, choice, number, parse
from qdiff.errors import UserError
from qdiff.sampling.run_folder import CALIBRATION_DATA

if TYPE_CHECKING:
    import onnx_ir

    from qdiff.calls import Call
    from qdiff.export.check import Comparison
    from qdiff.quant_model import QuantModel

TIMESTEPS = 1000
EXAMPLE = """example:
  python -m qdiff export runs/w4a8/w4a8.safetensors -o w4a8.onnx --check
"""


def _parser() -> Parser:
    parser = Parser(
        prog="python -m qdiff export",
        usage="%(prog)s FILE -o FILE [flags]",
        description="Write the network of a quantized file as an ONNX graph with QuantizeLinear and DequantizeLinear.",
        epilog=EXAMPLE,
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="quantized file of ours (.safetensors)")
    add = parser.group("files")
    add("-o", "--out", required=True, type=Path, metavar="FILE", help="file to write, .onnx (required)")
    add("--config", type=Path, metavar="FILE", help="YAML of the network (default: what the file holds)")
    add(
        "--packed", action="store_true", help="store weights of 4 bits and fewer as uint4, for disks: engines want int8"
    )
    add(
        "--rules",
        help="refuse what this engine would refuse; it needs activations of --a_sym",
        **choice("tensorrt"),
    )
    add("--force", action="store_true", help="replace --out if it exists")
    add = parser.group("comparison with the simulated network")
    add("--check", action="store_true", help="execute the graph, and print its error and speed")
    add(
        "--data",
        type=Path,
        metavar="FILE",
        needs=("--check",),
        help=f"inputs, calibration data as a run keeps them (default: {CALIBRATION_DATA} beside FILE if there "
        "is one, else noise)",
    )
    add(
        "--engine", default="openvino", needs=("--check",), help="what executes it", **choice("openvino", "onnxruntime")
    )
    add("--batch_size", default=8, needs=("--check",), help="images of a call", **number(int, 1, 4096))
    return parser


def main(argv: Sequence[str]) -> None:
    """Export the file of the command line.

    Raises:
        UserError: `--out` exists or cannot be written; a package is missing; the file is damaged, not ours,
            quantized by phase, or of another network; the graph breaks a rule; or `--data` has other inputs.
    """
    args = parse(_parser(), argv)
    check_new(args.out, args.force)

    from qdiff.export.engines import ENGINES
    from qdiff.export.onnx import export_graph, write_graph
    from qdiff.export.weights import pack_weights

    model, call = _load(args.file, args.config)
    checked = _inputs(args, call) if args.check else None  # before anything is written
    graph = export_graph(model, call)
    if args.rules:
        _check_rules(graph)
    packed = pack_weights(graph.graph) if args.packed else 0
    write_graph(graph, args.out)
    size = args.out.stat().st_size / 1e6
    print(f"{args.out}: {size:.2f} MB" + (f", {packed} weights in 4 bits" if args.packed else ""))
    if checked:
        from qdiff.export.check import check_exported

        inputs, source = checked
        print(f"{'inputs':12} {source}")
        print(_described(check_exported(model, ENGINES[args.engine](args.out), inputs), args.engine, args.batch_size))


def _load(path: Path, config: Path | None) -> "tuple[QuantModel, Call]":
    """Return the simulated network of a file, and a call of it for one image without values."""
    from omegaconf import OmegaConf

    from qdiff.checkpoints.load import load_as_written
    from qdiff.checkpoints.quantized_file import read_quantized
    from qdiff.config.networks import network_shapes
    from qdiff.config.schema import read_yaml

    file = read_quantized(path)
    if not (config or file.config):
        raise UserError(f"'{path}' does not hold the configuration of its network: give it with --config")
    given = read_yaml(config) if config else OmegaConf.create(dict(file.config))
    network, call = network_shapes(given, config or path)
    return load_as_written(network.to_empty(device="cpu"), path), call


def _inputs(args: Namespace, call: "Call") -> "tuple[Call, str]":
    """Return arguments for the images of a call, and what they are."""
    import torch

    from qdiff.calibration.data import read_collected_data
    from qdiff.calls import BatchMismatch

    beside = args.file.with_name(CALIBRATION_DATA)
    path = args.data or (beside if beside.is_file() else None)
    if path is None:
        return _noise(call, args.batch_size), "noise: with other inputs, errors are others"
    data = read_collected_data(path, "leave out --data")
    rows = torch.linspace(0, len(data) - 1, args.batch_size).long()  # at all timesteps
    dtypes = iter([x.dtype for x in call.tensors])  # some samplers have timesteps in floating point
    try:
        found = data.call[rows].map(lambda x: x.to(next(dtypes, x.dtype))).like(call)
        return found, f"{args.batch_size} samples of {path}"
    except BatchMismatch as e:
        raise UserError(f"'{path}' is not of the network of '{args.file}' ({e}): give its --data") from e


def _noise(call: "Call", batch: int) -> "Call":
    """Return a call with noise for images and conditions, at timesteps all over the range."""
    import torch

    generator = torch.Generator().manual_seed(0)

    def fill(x: torch.Tensor) -> torch.Tensor:
        if x.is_floating_point():
            return torch.randn(batch, *x.shape[1:], generator=generator, dtype=x.dtype)
        if x.ndim == 1 and x is call.args[1]:
            return torch.linspace(0, TIMESTEPS - 1, batch).to(x.dtype)
        return torch.zeros(batch, *x.shape[1:], dtype=x.dtype)

    return call.map(fill)


def _check_rules(graph: "onnx_ir.Model") -> None:
    from qdiff.export.tensorrt import breaches

    if found := breaches(graph.graph):
        raise UserError(
            f"TensorRT would refuse {len(found)} nodes of the graph ('{found[0].node}': {found[0].rule}): quantize "
            "with --a_sym (--preset tensorrt), or leave out --rules"
        )


def _described(found: "Comparison", engine: str, batch: int) -> str:
    from qdiff.export.session import in_integers

    ratio = found.simulated_seconds / found.exported_seconds
    return "\n".join(
        (
            f"{'executed':12} {in_integers(found.executed)} ({engine})",
            f"{'error':12} {found.error:.2g} to the simulated network, relative, which differs by {found.rounding:.2g} "
            "between float32 and float64",
            f"{'time':12} {1e3 * found.exported_seconds:.1f} ms per call of {batch} images, simulated "
            f"{1e3 * found.simulated_seconds:.1f} ms ({ratio:.2f} x as fast)",
        )
    )
