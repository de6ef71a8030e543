"""`python -m qdiff inspect`: show what a checkpoint holds, and whether it is intact."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qdiff.cli.operations import count, fitting_int8, layer_table, operations, step_table
from qdiff.cli.parser import Parser, parse
from qdiff.errors import UserError

if TYPE_CHECKING:
    from qdiff.checkpoints.content import QuantizedFile
    from qdiff.checkpoints.read import FullPrecisionFile, OriginalFile
    from qdiff.checkpoints.summary import CheckpointSummary
    from qdiff.evaluation.bops import NetworkBops
    from qdiff.files.state_dicts import StateDict
    from qdiff.policy import QuantPolicy


def main(argv: Sequence[str]) -> None:
    """Print what the file of the command line holds. Raises UserError if it is not an intact checkpoint."""
    parser = Parser(
        prog="python -m qdiff inspect",
        usage="%(prog)s FILE [--config FILE]",
        description="Show what a checkpoint of any kind holds, and whether it is intact.\n"
        "For a quantized file of ours, also count the bit operations of its network.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="the checkpoint")
    add = parser.group("bit operations")
    add("--config", type=Path, metavar="FILE", help="YAML of the network (default: what the checkpoint holds)")
    args = parse(parser, argv)

    from qdiff.checkpoints.read import read_checkpoint

    print(describe(args.file, read_checkpoint(args.file), args.config))


def describe(path: Path, file: "QuantizedFile | OriginalFile | FullPrecisionFile", config: Path | None = None) -> str:
    """Describe a checkpoint as `inspect` prints it.

    Args:
        path: the checkpoint.
        file: its content.
        config: YAML of its network; None takes what the file holds.

    Raises:
        UserError: bit operations cannot be counted with `config`; without it, the description says so.
    """
    from qdiff.checkpoints.read import FullPrecisionFile, OriginalFile
    from qdiff.files.formats import format_of
    from qdiff.mixed_precision.choice import KEY, choice_of

    size, choice = path.stat().st_size, None
    checked = ", and the checksums agree" if format_of(path) == "zip" else "; the format has no checksum"
    if isinstance(file, FullPrecisionFile):
        if config:
            raise UserError(f"'{path}' is not quantized, so that there are no bits to count: leave out --config")
        return _pairs([*_uncalibrated(path, file), ("whole", f"yes, every tensor can be read{checked}")])
    summary, (cost, line) = file.summary, _counted(path, file, config)
    if isinstance(file, OriginalFile):
        head = [("file", f"{path}: calibrated checkpoint of the original (goes with --resume --cali_ckpt)")]
        tail = [("whole", f"yes, every layer has its weight, rounding, step size and zero point{checked}")]
    else:
        head = [("file", f"{path}: quantized network of the {file.family} family (goes with --resume --cali_ckpt)")]
        tail = [
            ("whole", "yes, its sha256 agrees"),
            ("written by", ", ".join(f"{name} {version}" for name, version in file.versions.items())),
            *((f"  {key}", str(value)) for key, value in file.provenance.items() if key != KEY),
        ]
        choice = choice_of(file.provenance, path)
    integers = [("integers", fitting_int8(cost))] if cost else []
    about = [*_about(summary), ("operations", line), *integers, ("size", _size(size, summary.fp32_bytes))]
    tables = [*([step_table(choice)] if choice else []), layer_table(summary, cost)]
    return "\n\n".join([_pairs([*head, *about, *tail]), *tables])


def _counted(path: Path, file: "QuantizedFile | OriginalFile", config: Path | None) -> tuple["NetworkBops | None", str]:
    """Return the cost of a file's network, None if the file lacks what counting takes, and a line about it."""
    try:
        cost = count(path, file, config)
    except UserError as error:
        if config:
            raise
        return None, f"not counted: {error}"
    return cost, operations(cost)


def _uncalibrated(path: Path, file: "FullPrecisionFile") -> list[tuple[str, str]]:
    """Return a line about the file, and one for each of its state dicts."""
    from qdiff.files.state_dicts import largest

    main = largest(file.found).tensors
    large = [state for state in file.found if 2 * len(state.tensors) >= len(main)]  # no optimizer
    places = [("weights" if i == 0 else "", _contents(state)) for i, state in enumerate(large)]
    size = path.stat().st_size
    if file.kind:
        return [("file", f"{path}: {file.kind}"), *places, ("size", f"{size / 1e6:.2f} MB")]
    kind = "full-precision checkpoint, not quantized (goes with --ckpt or -r)"
    parameters = sum(x.numel() for x in main.values())
    return [("file", f"{path}: {kind}"), *places, ("size", _size(size, 4 * parameters))]


def _contents(state: "StateDict") -> str:
    from qdiff.files.dtypes import dtype_name

    tensors = state.tensors.values()
    kinds = ", ".join(sorted({dtype_name(x.dtype) for x in tensors}))
    averages = ", averages" if state.averaged else ""
    return f"{state}: {len(tensors)} tensors of {kinds}, {sum(x.numel() for x in tensors):,} parameters{averages}"


def _about(summary: "CheckpointSummary") -> list[tuple[str, str]]:
    act, split = summary.activations, [path for path, layer in summary.layers.items() if layer.split]
    layers = Counter(layer.bits for layer in summary.layers.values())
    acts = "in floating point"
    if act:
        known = act.bits is not None
        bits = f"{act.bits} bits, {act.softmax_bits} after the softmax" if known else "bits not stored in the file"
        others = [*_phases(summary.policy), *_rules(summary.policy)] if summary.policy else []
        acts = ", ".join(["symmetric" if act.symmetric else "asymmetric", bits, *others])
    symmetric = ["symmetric"] if summary.policy and summary.policy.weight.symmetric else []
    return [
        ("weights", ", ".join([*(f"{bits} bits in {n} layers" for bits, n in layers.most_common()), *symmetric])),
        ("activations", acts),
        ("split", f"yes, {len(split)} layers" if summary.split else "no"),
    ]


def _phases(policy: "QuantPolicy") -> list[str]:
    return [f"{bits} at timesteps {policy.timesteps_of(i)}" for i, (_, bits) in enumerate(policy.act_phases, start=1)]


def _rules(policy: "QuantPolicy") -> list[str]:
    return [f"{pattern} {bits or 'in floating point'}" for pattern, bits in policy.act_rules]


def _size(file: int, fp32: int) -> str:
    return f"{file / 1e6:.2f} MB, {file / fp32:.3f} of the network in FP32 ({fp32 / 1e6:.2f} MB)"


def _pairs(lines: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"{name:12} {text}" for name, text in lines)
