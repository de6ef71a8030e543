"""Quantized networks to and from files: ours, and those that the original calibrated."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusion.checks import check_choice
from qdiff.adapters import Adapter, adapter_for
from qdiff.backends import SIMULATED
from qdiff.checkpoints import original
from qdiff.checkpoints.content import QuantizedFile
from qdiff.checkpoints.quantized_file import read_quantized, write_quantized
from qdiff.checkpoints.read import OriginalFile, read_calibrated
from qdiff.checkpoints.summary import Layer
from qdiff.checkpoints.validate import check_numbers, compare, legacy_owners, shapes_of, splits_of, state_shapes
from qdiff.errors import UserError
from qdiff.execution import execute_integers
from qdiff.files.dtypes import dtype_name
from qdiff.policy import QuantPolicy, QuantSpec
from qdiff.quant_layer import PackedModule, QuantModule
from qdiff.quant_model import QuantModel


def save_quantized(
    path: str | Path,
    model: QuantModel,
    *,
    config: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write a quantized network to one file, complete by itself; a failure leaves the old file, if any.

    Args:
        path: a file there is replaced.
        model: calibrated; every activation that the policy quantizes has its quantizer.
        config: of the network, JSON values, for readers that build it from the file; {} by default.
        provenance: where the numbers come from (settings, digests of weights and data), JSON values; {} by default.

    Raises:
        ValueError: the calibration of `model` is not finished, or its codes are gone: it was loaded with `low_memory`,
            or computes with integers.
        UserError: the disk is full or cannot be written to.
    """
    if not model.layers():
        raise ValueError("this network computes with integers: copy its file instead")
    for layer, module in model.layers().items():
        if module.rounding is not None:
            raise ValueError(f"the rounding of {layer} is still being learned")
        if isinstance(module, PackedModule):
            raise ValueError(f"{layer} was loaded with low memory: copy its file instead")
    for site in model.sites():
        _ = site.calibrated  # raises if it is not
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
    backend: str = SIMULATED,
    adapter: Adapter | None = None,
) -> QuantModel:
    """Load a calibrated file, ours or the original's, into a network; no data and no forward pass are needed.

    Args:
        model: the network, changed in place; its parameters may hold anything, because the file has them all.
        path: the calibrated checkpoint.
        weight_bit: bits of the weights, 2..8, to be checked against the file; None takes the file's.
        act_bit: bits of the activations, 2..16; None leaves them in floating point.
        a_sym: whether activations are symmetric. Counts only with `act_bit`, as `sm_abit` does.
        split: whether shortcut layers are quantized in two slices.
        sm_abit: bits of the attention weights, 2..16.
        low_memory: keep the codes packed and dequantize them in every forward.
        backend: "simulated" in floating point, or "torch" to compute with integers, on the CPU. Other backends need
            arguments of a call, see `qdiff.execute`.
        adapter: describes the network's family; None for networks of `ddim` and `ldm`.

    Returns:
        the quantized network on the device of `model` and in its mode, without full-precision weights.

    Raises:
        UserError: the file is damaged, not calibrated, of another network, or contradicts the arguments; or this
            machine lacks the backend.
        ValueError: a network of another family without an adapter, or a backend of another name.
    """
    check_choice("backend", backend, (SIMULATED, "torch"))
    adapter = adapter or adapter_for(model)
    file = read_calibrated(path)
    policy = _checked_policy(path, file, weight_bit, act_bit, a_sym, split, sm_abit)
    restored = _restored(path, file, model, policy, adapter, low_memory or backend != SIMULATED)
    return restored if backend == SIMULATED else execute_integers(restored)


def policy_of(
    path: str | Path,
    *,
    weight_bit: int | None = None,
    act_bit: int | None = None,
    a_sym: bool = False,
    split: bool = False,
    sm_abit: int = 8,
) -> QuantPolicy:
    """Return the policy of the network that `load_quantized` makes of a file with these arguments.

    Raises:
        UserError: the file is damaged, not calibrated, or contradicts the arguments.
    """
    return _checked_policy(path, read_calibrated(path), weight_bit, act_bit, a_sym, split, sm_abit)


def _checked_policy(
    path: str | Path,
    file: QuantizedFile | OriginalFile,
    weight_bit: int | None,
    act_bit: int | None,
    a_sym: bool,
    split: bool,
    sm_abit: int,
) -> QuantPolicy:
    file.summary.check_flags(path, weight_bit, act_bit, a_sym, split, sm_abit)
    act = None if act_bit is None else QuantSpec(act_bit, symmetric=a_sym)
    if isinstance(file, QuantizedFile):
        return file.policy if act else file.policy.without_activations()
    weight = QuantSpec(file.summary.weight_bits, per_channel=True, range_search="max")
    return QuantPolicy(weight, act, sm_abit, split)


def load_as_written(
    model: nn.Module, path: str | Path, *, low_memory: bool = False, adapter: Adapter | None = None
) -> QuantModel:
    """Load one of our quantized files into a network, weights and activations as the file says.

    Args:
        model, path, low_memory, adapter: as for `load_quantized`.

    Raises:
        UserError: the file is damaged, not ours, or of another network.
        ValueError: a network of another family without an adapter.
    """
    adapter = adapter or adapter_for(model)
    file = read_quantized(path)
    return _restored(path, file, model, file.policy, adapter, low_memory)


def load_rounding(
    model: nn.Module, path: str | Path, policy: QuantPolicy, *, adapter: Adapter | None = None
) -> QuantModel:
    """Load the weight codes of a calibrated file into a network whose activations are still to be calibrated.

    Args:
        model: the network with its full-precision weights, which it keeps; changed in place.
        path: the calibrated checkpoint, ours or the original's.
        policy: how weights are quantized in the file, and how activations will be. `weight_rules` are the file's: leave
            them empty or give the same ones.
        adapter: as for `load_quantized`.

    Returns:
        the quantized network; `full_precision` works.

    Raises:
        UserError, ValueError: as `load_quantized`.
    """
    adapter = adapter or adapter_for(model)
    file = read_calibrated(path)
    file.summary.check_flags(path, policy.weight.bits, None, False, policy.split, policy.softmax_bits)
    rules = file.policy.weight_rules if isinstance(file, QuantizedFile) else ()
    if policy.weight_rules not in ((), rules):
        raise UserError(f"'{path}' has other bits per layer than the policy: leave out its weight_rules")
    policy = replace(policy, weight_rules=rules)
    state = _state_for(path, file, model, policy, adapter)
    return QuantModel.from_state(model, policy, adapter, state, keep_weights=True, activations=False)


def _restored(
    path: str | Path,
    file: QuantizedFile | OriginalFile,
    model: nn.Module,
    policy: QuantPolicy,
    adapter: Adapter,
    low_memory: bool,
) -> QuantModel:
    state = _state_for(path, file, model, policy, adapter)
    layer_type = PackedModule if low_memory else QuantModule
    quantized = QuantModel.from_state(model, policy, adapter, state, layer_type=layer_type)
    quantized.provenance = file.provenance if isinstance(file, QuantizedFile) else {}
    return quantized


def _state_for(
    path: str | Path, file: QuantizedFile | OriginalFile, model: nn.Module, policy: QuantPolicy, adapter: Adapter
) -> Mapping[str, Tensor]:
    """Return the file's tensors as `QuantModel.from_state` takes them, checked against the network."""
    if isinstance(file, OriginalFile):
        return _converted(path, file, model, policy, adapter)
    compare(path, file.shapes, state_shapes(model, file.policy, adapter))
    check_numbers(path, file.state)
    if file.splits != splits_of(model, file.policy, adapter):
        raise UserError(
            f"'{path}' splits its shortcuts at other channels than the network: give the --config of its network"
        )
    return file.state


def _converted(
    path: str | Path, file: OriginalFile, model: nn.Module, policy: QuantPolicy, adapter: Adapter
) -> Mapping[str, Tensor]:
    held = QuantPolicy(act=QuantSpec(8) if file.summary.activations else None, split=policy.split)
    shapes, owners = state_shapes(model, held, adapter), legacy_owners(model, adapter)
    compare(path, shapes_of(file.state), original.original_shapes(shapes, splits_of(model, held, adapter), owners))
    check_numbers(path, file.state)
    _check_precision(path, file.state)
    return original.from_original(file.state, shapes, policy, owners)


def _check_precision(path: str | Path, state: Mapping[str, Tensor]) -> None:
    """Refuse weights and step sizes in half precision: floor(w / delta) of rounded numbers gives other codes."""
    for key, x in state.items():
        if key.endswith((".weight", ".alpha", ".delta")) and x.dtype not in (torch.float32, torch.float64):
            dtype = dtype_name(x.dtype)
            raise UserError(f"'{path}': '{key}' is {dtype}, too coarse for its codes: give the file in float32")
