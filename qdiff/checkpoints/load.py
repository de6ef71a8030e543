"""Where files and networks meet: quantized networks of ours and of the original, and full-precision weights."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qdiff.adapters import Adapter, adapter_for
from qdiff.checkpoints import original, weights
from qdiff.checkpoints.quantized_file import QuantizedFile, read_if_quantized, write_quantized
from qdiff.checkpoints.summary import Facts, Layer
from qdiff.checkpoints.validate import check_numbers, compare, legacy_owners, shapes_of, splits_of, state_shapes
from qdiff.errors import UserError
from qdiff.files.dtypes import dtype_name
from qdiff.files.foreign import kind_of
from qdiff.files.formats import format_of
from qdiff.files.state_dicts import StateDict, largest, read_state_dicts
from qdiff.observers import Observer
from qdiff.policy import QuantPolicy, QuantSpec
from qdiff.quant_layer import PackedModule, QuantModule
from qdiff.quant_model import QuantModel


@dataclass(frozen=True)
class OriginalFile:
    """A calibrated checkpoint of the original: its tensors by key, and what they tell."""

    state: Mapping[str, Tensor]
    facts: Facts


@dataclass(frozen=True)
class FullPrecisionFile:
    """A checkpoint that is neither ours nor calibrated by the original: the state dicts that it holds, at least one."""

    found: Sequence[StateDict]

    @property
    def kind(self) -> str | None:
        """What it is instead of weights of ours, and what to do; see `kind_of`."""
        return kind_of(largest(self.found).tensors)


# Gives the tensors of a file, by its path, the keys of a network; tells in phrases what it left out or computed
Layout = Callable[[str | Path, StateDict], tuple[dict[str, Tensor], list[str]]]


def as_it_is(_path: str | Path, chosen: StateDict) -> tuple[dict[str, Tensor], list[str]]:
    """The `Layout` of files that have exactly the network's keys."""
    return dict(chosen.tensors), []


def read_checkpoint(path: str | Path) -> QuantizedFile | OriginalFile | FullPrecisionFile:
    """Read a checkpoint of any kind, told apart by content.

    Raises:
        UserError: no checkpoint, or not a whole one.
    """
    if format_of(path) == "safetensors" and (ours := read_if_quantized(path)):
        return ours
    found = read_state_dicts(path)
    calibrated = next((state for state in found if original.is_original(state.tensors)), None)
    if calibrated is None:
        return FullPrecisionFile(found)
    state = calibrated.unwrapped().tensors
    try:
        return OriginalFile(state, original.facts(state))
    except ValueError as e:
        raise UserError(f"'{path}' is not a whole calibrated checkpoint: {e}") from e


def save_quantized(
    path: str | Path,
    model: QuantModel,
    *,
    config: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write a quantized network to one file that needs nothing beside it, whole or not at all.

    Args:
        path: is replaced if it exists.
        model: with settled rounding and, where the policy quantizes activations, their step sizes.
        config: of the network, JSON values, from which a reader can build it; {} by default.
        provenance: where the numbers come from (settings, digests of weights and data), JSON values; {} by default.

    Raises:
        ValueError: the calibration of `model` is not finished.
        UserError: the disk refuses.
    """
    for layer, module in model.layers().items():
        if module.rounding is not None:
            raise ValueError(f"the rounding of {layer} is still being learned")
        if isinstance(module, PackedModule):
            raise ValueError(f"{layer} was loaded with low memory: copy its file instead")
    for site in model.sites():
        if site.quantizer is None or any(isinstance(part, Observer) for part in site.quantizer.modules()):
            raise ValueError(f"{site.path}.{site.name} is not calibrated")
    layers = {
        path: Layer(tuple(module.codes.shape), model.policy.weight_for(path).bits, module.split or ())
        for path, module in model.layers().items()
    }
    state = model.quantized_state()
    write_quantized(
        path, QuantizedFile(model.policy, model.adapter.family, config or {}, layers, state, provenance or {})
    )


def load_quantized(
    model: nn.Module,
    path: str | Path,
    *,
    weight_bit: int | None = None,
    act_bit: int | None = None,
    a_sym: bool = False,
    split: bool = False,
    sm_abit: int = 8,
    low_memory: bool = False,
    adapter: Adapter | None = None,
) -> QuantModel:
    """The quantized network of a file, ours or the original's; no data, no forward pass and no other file is needed.

    Args:
        model: the network, changed in place; its parameters may hold anything, the file has them all.
        path: the calibrated checkpoint.
        weight_bit: 2..8; None takes the file's.
        act_bit: bits of the activations, 2..16; None leaves them in floating point.
        a_sym, split, sm_abit: as the file was calibrated; `a_sym` and `sm_abit` count only with `act_bit`.
        low_memory: keep the codes packed and compute their values in every forward.
        adapter: describes the network's family; None for the networks of `ddim` and `ldm`.

    Returns:
        a network on the device of `model`, in the mode it was in, without full-precision weights.

    Raises:
        UserError: damaged file, no calibrated file, one of another network, or one that contradicts the arguments.
        ValueError: a network from elsewhere without an adapter.
    """
    adapter = adapter or adapter_for(model)
    file = _read_calibrated(path)
    file.facts.compare(path, weight_bit, act_bit, a_sym, split, sm_abit)
    act = None if act_bit is None else QuantSpec(act_bit, symmetric=a_sym)
    if isinstance(file, QuantizedFile):
        policy = file.policy if act else file.policy.without_activations()
    else:
        weight = QuantSpec(file.facts.weight_bits, per_channel=True, range_search="max")
        policy = QuantPolicy(weight, act, sm_abit, split)
    state = _state_for(path, file, model, policy, adapter)
    layer_type = PackedModule if low_memory else QuantModule
    quantized = QuantModel.from_state(model, policy, adapter, state, layer_type=layer_type)
    quantized.provenance = file.provenance if isinstance(file, QuantizedFile) else {}
    return quantized


def load_rounding(
    model: nn.Module, path: str | Path, policy: QuantPolicy, *, adapter: Adapter | None = None
) -> QuantModel:
    """The weight codes of a calibrated file, for a network whose activations are still to be calibrated.

    Args:
        model: the network with its full-precision weights, which it keeps; changed in place.
        path: the calibrated checkpoint, ours or the original's.
        policy: how weights are quantized there, and how activations will be; rules for weights are the file's.
        adapter: as for `load_quantized`.

    Raises:
        UserError, ValueError: as `load_quantized`.
    """
    adapter = adapter or adapter_for(model)
    file = _read_calibrated(path)
    file.facts.compare(path, policy.weight.bits, None, False, policy.split, policy.softmax_bits)
    rules = file.policy.weight_rules if isinstance(file, QuantizedFile) else ()
    if policy.weight_rules not in ((), rules):
        raise UserError(f"'{path}' has other bits per layer than the policy: leave out its weight_rules")
    policy = replace(policy, weight_rules=rules)
    state = _state_for(path, file, model, policy, adapter)
    return QuantModel.from_state(model, policy, adapter, state, keep_weights=True, activations=False)


def load_weights(
    model: nn.Module,
    path: str | Path,
    *,
    layout: Layout = as_it_is,
    averages: bool | None = None,
    skip: tuple[str, ...] = (),
) -> None:
    """Load the full-precision weights of a file into a network, on the CPU and where possible mapped instead of copied.

    Finds them in the file and logs which were taken; see `qdiff.checkpoints.weights.choose`.

    Args:
        model: may be on the meta device; its parameters and buffers are replaced and keep their dtypes.
        path: the weights, in any floating-point type.
        layout: how the keys of files differ from those of the network.
        averages: whether averages are wanted where the file has weights and their averages; None where nothing says it.
        skip: key prefixes that are compared but not loaded; their numbers are not read.

    Raises:
        UserError: damaged file, a calibrated file, weights of another network or several sets of weights.
    """
    file = read_checkpoint(path)
    if not isinstance(file, FullPrecisionFile):
        raise UserError(
            f"'{path}' is calibrated, full-precision weights are needed here: use --resume --cali_ckpt for it"
        )
    own = model.state_dict()
    chosen, notes = weights.choose(path, file.found, own, averages)
    state, differences = layout(path, chosen)
    compare(path, shapes_of(state), shapes_of(own), written=chosen.tensors)
    loaded = weights.converted(path, {key: x for key, x in state.items() if not key.startswith(skip)}, own)
    check_numbers(path, loaded)
    model.load_state_dict(loaded, assign=True, strict=not skip)
    weights.report(path, chosen, own, [*notes, *differences])


def _read_calibrated(path: str | Path) -> QuantizedFile | OriginalFile:
    file = read_checkpoint(path)
    if isinstance(file, FullPrecisionFile):
        full_precision = "a full-precision checkpoint without quantizers: use --ckpt or -r for it"
        raise UserError(f"'{path}' is {file.kind or full_precision}")
    return file


def _state_for(
    path: str | Path, file: QuantizedFile | OriginalFile, model: nn.Module, policy: QuantPolicy, adapter: Adapter
) -> Mapping[str, Tensor]:
    """The file's tensors as our state, all of them checked against the network."""
    if isinstance(file, QuantizedFile):
        shapes, splits = state_shapes(model, file.policy, adapter), splits_of(model, file.policy, adapter)
        compare(path, file.shapes, shapes)
        check_numbers(path, file.state)
        if file.splits != splits:
            raise UserError(
                f"'{path}' splits its shortcuts at other channels than the network: give the --config of its network"
            )
        return file.state
    held = QuantPolicy(act=QuantSpec(8) if file.facts.activations else None, split=policy.split)
    shapes, splits = state_shapes(model, held, adapter), splits_of(model, held, adapter)
    owners = legacy_owners(model, adapter)
    compare(path, shapes_of(file.state), original.original_shapes(shapes, splits, owners))
    check_numbers(path, file.state)
    _check_precision(path, file.state)
    return original.from_original(file.state, shapes, policy, owners)


def _check_precision(path: str | Path, state: Mapping[str, Tensor]) -> None:
    """Refuse a calibrated file in less than float32: floor(w / delta) of rounded numbers gives other codes."""
    for key, x in state.items():
        if key.endswith((".weight", ".alpha", ".delta")) and x.dtype not in (torch.float32, torch.float64):
            dtype = dtype_name(x.dtype)
            raise UserError(f"'{path}': '{key}' is {dtype}, too coarse for its codes: give the file in float32")
