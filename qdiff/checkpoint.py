"""Where files and networks meet: quantized networks of ours and of the original, and full-precision weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from qdiff import compat
from qdiff.adapters import Adapter, adapter_for
from qdiff.errors import UserError
from qdiff.files.facts import Facts
from qdiff.files.pickles import format_of, read_weights
from qdiff.files.quantized import QuantizedFile, is_quantized, read_quantized, write_quantized
from qdiff.fitting import check_numbers, compare, legacy_owners, splits_of, state_shapes
from qdiff.observing import Observer
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
    """Weights of a network that is not quantized, by key."""

    state: Mapping[str, Tensor]


def read_checkpoint(path: str | Path) -> QuantizedFile | OriginalFile | FullPrecisionFile:
    """Read a checkpoint of any kind, told apart by content.

    Raises:
        UserError: no checkpoint, or not a whole one.
    """
    if format_of(path) == "safetensors" and is_quantized(path):
        return read_quantized(path)
    state = read_weights(path)
    if not compat.is_original(state):
        return FullPrecisionFile(state)
    try:
        return OriginalFile(state, compat.facts(state))
    except ValueError as e:
        raise UserError(f"'{path}' is not a whole calibrated checkpoint: {e}") from e


def save_quantized(
    path: str | Path, model: QuantModel, *, config: Mapping[str, Any], provenance: Mapping[str, Any]
) -> None:
    """Write a quantized network to one file that needs nothing beside it, whole or not at all.

    Args:
        path: is replaced if it exists.
        model: with settled rounding and, where the policy quantizes activations, their step sizes.
        config: of the network, JSON values.
        provenance: where the numbers come from (settings, digests of weights and data), JSON values.

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
    splits = {layer: module.split for layer, module in model.layers().items() if module.split}
    state = model.quantized_state()
    write_quantized(path, QuantizedFile(model.policy, model.adapter.family, config, splits, state, provenance))


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
) -> QuantModel:
    """The quantized network of a file, ours or the original's; no data, no forward pass and no other file is needed.

    Args:
        model: the network, changed in place; its parameters may hold anything, the file has them all.
        path: the calibrated checkpoint.
        weight_bit: 2..8; None takes the file's.
        act_bit: bits of the activations, 2..16; None leaves them in floating point.
        a_sym, split, sm_abit: as the file was calibrated; `a_sym` and `sm_abit` count only with `act_bit`.
        low_memory: keep the codes packed and compute their values in every forward.

    Returns:
        a network on the device of `model`, in the mode it was in, without full-precision weights.

    Raises:
        UserError: damaged file, no calibrated file, one of another network, or one that contradicts the arguments.
    """
    file = _read_calibrated(path)
    file.facts.compare(path, weight_bit, act_bit, a_sym, split, sm_abit)
    act = None if act_bit is None else QuantSpec(act_bit, symmetric=a_sym)
    if isinstance(file, QuantizedFile):
        policy = file.policy if act else file.policy.without_activations()
    else:
        weight = QuantSpec(file.facts.weight_bits, per_channel=True, range_search="max")
        policy = QuantPolicy(weight, act, sm_abit, split)
    adapter = adapter_for(model)
    state = _state_for(path, file, model, policy, adapter)
    return QuantModel.from_state(model, policy, adapter, state, layer_type=PackedModule if low_memory else QuantModule)


def load_rounding(model: nn.Module, path: str | Path, policy: QuantPolicy) -> QuantModel:
    """The weight codes of a calibrated file, for a network whose activations are still to be calibrated.

    Args:
        model: the network with its full-precision weights, which it keeps; changed in place.
        path: the calibrated checkpoint, ours or the original's.
        policy: how weights are quantized there, and how activations will be.

    Raises:
        UserError: as `load_quantized`.
    """
    file = _read_calibrated(path)
    file.facts.compare(path, policy.weight.bits, None, False, policy.split, policy.softmax_bits)
    adapter = adapter_for(model)
    state = _state_for(path, file, model, policy, adapter)
    return QuantModel.from_state(model, policy, adapter, state, keep_weights=True, activations=False)


def load_weights(
    model: nn.Module,
    path: str | Path,
    rename: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
    without: tuple[str, ...] = (),
) -> None:
    """Give a network the full-precision weights of a file, on the CPU and where possible mapped instead of copied.

    Args:
        model: may be on the meta device; its parameters and buffers are replaced and keep their dtypes.
        path: the weights.
        rename: gives keys that are written in several ways the network's names.
        without: how the keys begin that are not loaded, and of whose numbers nothing is read.

    Raises:
        UserError: damaged file, a calibrated file, or weights of another network.
    """
    file = read_checkpoint(path)
    if not isinstance(file, FullPrecisionFile):
        raise UserError(
            f"'{path}' is calibrated, full-precision weights are needed here: use --resume --cali_ckpt for it"
        )
    own, state = model.state_dict(), rename(file.state)
    compare(path, state, {key: tuple(x.shape) for key, x in own.items()})
    loaded = {key: x for key, x in state.items() if not key.startswith(without)}
    check_numbers(path, loaded)
    model.load_state_dict({key: x.to(own[key].dtype) for key, x in loaded.items()}, assign=True, strict=not without)


def _read_calibrated(path: str | Path) -> QuantizedFile | OriginalFile:
    file = read_checkpoint(path)
    if isinstance(file, FullPrecisionFile):
        raise UserError(f"'{path}' has no quantizers, it is a full-precision checkpoint: use --ckpt or -r for it")
    return file


def _state_for(
    path: str | Path, file: QuantizedFile | OriginalFile, model: nn.Module, policy: QuantPolicy, adapter: Adapter
) -> Mapping[str, Tensor]:
    """The file's tensors as our state, all of them checked against the network."""
    held = replace(policy, act=QuantSpec(8) if file.facts.activations else None)
    shapes, splits = state_shapes(model, held, adapter), splits_of(model, held, adapter)
    owners = legacy_owners(model, adapter)
    ours = isinstance(file, QuantizedFile)
    compare(path, file.state, shapes if ours else compat.original_shapes(shapes, splits, owners))
    check_numbers(path, file.state)
    if ours and file.splits != splits:
        raise UserError(
            f"'{path}' splits its shortcuts at other channels than the network: give the --config of its network"
        )
    return file.state if ours else compat.from_original(file.state, shapes, policy.weight, owners)
