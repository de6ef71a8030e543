"""Layers and sampling steps with their bits, multiply-accumulates (MACs) and bit operations (BOPs), as text."""

from pathlib import Path
from typing import TYPE_CHECKING

from qdiff.errors import UserError
from qdiff.files.tables import aligned, with_prefix

if TYPE_CHECKING:
    from qdiff.checkpoints.content import QuantizedFile
    from qdiff.checkpoints.read import OriginalFile
    from qdiff.checkpoints.summary import CheckpointSummary
    from qdiff.evaluation.bops import LeafBops, NetworkBops
    from qdiff.mixed_precision.choice import Choice

INT8 = 8
NAMED = 3  # of what stays in floating point for the same reason
TITLES = ("layer", "weight", "bits", "split", "act bits")


def count(path: Path, file: "QuantizedFile | OriginalFile", config: Path | None) -> "NetworkBops":
    """Count the bit operations of one call of a file's network, for one image.

    Args:
        path: the file.
        file: its content.
        config: YAML of its network; None takes what the file holds.

    Raises:
        UserError: the file does not hold all bits, or there is no configuration, or it describes another network or
            none.
    """
    from omegaconf import OmegaConf

    from qdiff.adapters import adapter_for
    from qdiff.checkpoints.read import OriginalFile
    from qdiff.checkpoints.validate import compare, state_shapes
    from qdiff.config.networks import network_shapes
    from qdiff.config.schema import read_yaml
    from qdiff.evaluation.bops import empty_model, network_bops

    if isinstance(file, OriginalFile):
        raise UserError(f"'{path}' does not hold the bits of activations: convert it first (python -m qdiff convert)")
    if not (config or file.config):
        raise UserError("the file does not hold the configuration of its network: give it with --config")
    given = read_yaml(config) if config else OmegaConf.create(dict(file.config))
    network, call = network_shapes(given, config or path)
    adapter = adapter_for(network)
    compare(path, file.shapes, state_shapes(network, file.policy, adapter))
    return network_bops(empty_model(network, file.policy, adapter), call)


def operations(cost: "NetworkBops") -> str:
    """Describe the cost of a network call in one line; phases are in the order of their timesteps."""
    bops, fp = [cost.bops(phase) for phase in cost.phases], cost.fp_bops
    counts, shares = (_by_phase(texts) for texts in ([*map(with_prefix, bops)], [f"{x / fp:.3f}" for x in bops]))
    macs = f"{with_prefix(cost.macs)} MACs per network call and image"
    return f"{macs}; {counts} BOPs, {shares} of full precision ({with_prefix(fp)})"


def fitting_int8(cost: "NetworkBops") -> str:
    """Say in one line what of a network integers of 8 bits can compute; what a backend does, it says itself."""
    floating: dict[str, list[str]] = {}
    for path, leaf in cost.leaves.items():
        if max(map(max, leaf.bits)) > INT8:
            floating.setdefault(_bits(leaf), []).append(path)
    count = len(cost.leaves) - sum(map(len, floating.values()))
    head = f"{count} of {len(cost.leaves)} layers and attention products have operands that fit int8"
    return "; ".join([head, *(f"{bits} do not: {_some(paths)}" for bits, paths in floating.items())])


def layer_table(summary: "CheckpointSummary", cost: "NetworkBops | None") -> str:
    """Return a table of the layers; with their cost, it has attention products too, and what is in neither."""
    layers = {path: _cells(summary, path) for path in summary.layers}
    if cost is None:
        return aligned([TITLES, *((path, *cells) for path, cells in layers.items())])
    rows = [(*TITLES, "MACs", "BOPs")]
    for path, leaf in cost.leaves.items():
        bops = _by_phase([with_prefix(leaf.bops(phase)) for phase in cost.phases])
        rows.append((path, *layers.get(path, ("-", "-", "-", _bits(leaf))), with_prefix(leaf.macs), bops))
    if cost.other_macs:
        rows.append(("others", *"---", "32x32", with_prefix(cost.other_macs), with_prefix(cost.other_bops)))
    return aligned(rows)


def step_table(choice: "Choice") -> str:
    """Return a table of the bits of activations by sampling step, from the noisiest on, with the BOPs of an image."""
    rows = [("timesteps", "act bits", "calls", "BOPs per image")]
    for run in choice.runs:
        rows.append((f"{run.first}..{run.last}", str(run.bits), str(run.calls), with_prefix(run.bops)))
    calls, most = sum(choice.measured.calls), choice.measured.widths[-1]
    share = f"{with_prefix(choice.bops)}, {choice.share:.3f} of {most} bits at all steps"
    return f"bits chosen by {choice.criterion}\n" + aligned([*rows, ("all", "", str(calls), share)])


def _cells(summary: "CheckpointSummary", path: str) -> tuple[str, str, str, str]:
    """Return what the table says about a layer besides its path and cost."""
    layer = summary.layers[path]
    split = "+".join(map(str, layer.split)) or "-"
    return "x".join(map(str, layer.shape)), str(layer.bits), split, _act_bits(summary, path)


def _act_bits(summary: "CheckpointSummary", path: str) -> str:
    if summary.policy is None:
        return "?" if summary.activations else "-"
    specs = [summary.policy.act_for(path, phase=phase) for phase in summary.policy.phases]
    return _by_phase([str(spec.bits) if spec else "-" for spec in specs])


def _bits(leaf: "LeafBops") -> str:
    return _by_phase(["x".join(map(str, pair)) for pair in leaf.bits])


def _some(paths: list[str]) -> str:
    return ", ".join(paths[:NAMED]) + (f" and {len(paths) - NAMED} others" if len(paths) > NAMED else "")


def _by_phase(texts: list[str]) -> str:
    return "/".join(texts if len(set(texts)) > 1 else texts[:1])
