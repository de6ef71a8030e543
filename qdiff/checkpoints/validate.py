"""Checks whether the tensors of a file fit a network: keys, shapes, numbers."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from qdiff.adapters import Adapter
from qdiff.errors import UserError, first_of
from qdiff.files.foreign import kind_of
from qdiff.operations import OPERATIONS
from qdiff.phases import phase_names
from qdiff.policy import QuantPolicy

Shape = tuple[int, ...]


def splits_of(model: nn.Module, policy: QuantPolicy, adapter: Adapter) -> dict[str, Shape]:
    """Return the input channels of the slices of each split layer, by its path in the quantized network."""
    return {f"model.{path}": sizes for path, sizes in adapter.splits(model).items()} if policy.split else {}


def state_shapes(model: nn.Module, policy: QuantPolicy, adapter: Adapter) -> dict[str, Shape]:
    """Return the expected keys and shapes of `QuantModel.quantized_state` for this network and policy.

    Args:
        model: the network in full precision; its parameters are not read, so it may be on the meta device.
        policy, adapter: as for `QuantModel`.
    """
    shapes = {f"model.{key}": tuple(x.shape) for key, x in model.state_dict().items()}
    splits = splits_of(model, policy, adapter)

    def add_activation(name: str, parts: int) -> None:
        for phase in phase_names(name, len(policy.phases)):
            shapes.update(_quantizer_shapes(phase, (), parts))

    for path, module in model.named_modules(prefix="model"):
        if type(module) in OPERATIONS:
            shape, parts = shapes.pop(f"{path}.weight"), len(splits.get(path, ()))
            shapes[f"{path}.codes"] = shape
            shapes |= _quantizer_shapes(f"{path}.weight_quantizer", (shape[0], *[1] * (len(shape) - 1)), parts)
            if policy.act_for(path):
                add_activation(f"{path}.act_quantizer", parts)
        elif kind := adapter.products.get(type(module)):
            for operand in kind.operands:
                if kind.spec(policy, path, operand):
                    add_activation(f"{path}.act_quantizer_{operand}", 0)
    return shapes


def _quantizer_shapes(name: str, shape: Shape, parts: int) -> dict[str, Shape]:
    """Return the keys and shapes of a quantizer, or of the parts of a split one."""
    names = [f"{name}.parts.{i}" for i in range(parts)] or [name]
    return {f"{part}.{field}": shape for part in names for field in ("delta", "zero_point")}


def legacy_owners(model: nn.Module, adapter: Adapter) -> dict[str, str]:
    """Return the path of the owner, by path of the product, where the original keeps the product's quantizers on it."""
    kinds = {path: adapter.products.get(type(module)) for path, module in model.named_modules(prefix="model")}
    return {path: path.rpartition(".")[0] for path, kind in kinds.items() if kind and kind.legacy_owner}


def compare(
    path: str | Path,
    shapes: Mapping[str, Shape],
    wanted: Mapping[str, Shape],
    *,
    written: Mapping[str, Tensor] | None = None,
) -> None:
    """Compare the keys and shapes of a file with those that a network needs.

    Args:
        path: the file, for the error message.
        shapes: of its tensors.
        wanted: what the network needs.
        written: the tensors under the file's own names, so that the error can say what the file is instead.

    Raises:
        UserError: a key is missing or surplus, or a shape differs.
    """
    if difference := _difference(shapes, wanted):
        kind = kind_of(written or {})
        cause = f"is {kind}" if kind else f"does not fit the network: {difference}; give the --config of its network"
        raise UserError(f"'{path}' {cause}")


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, Shape]:
    """Return the shape of each tensor."""
    return {key: tuple(x.shape) for key, x in state.items()}


def _difference(shapes: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> str | None:
    """Say how keys or shapes differ from those that the network needs; None where they are the same."""
    parts, there = ({key.partition(".")[0] for key in keys if "." in key} for keys in (wanted, shapes))
    if there < parts:
        return f"it has nothing of {' and '.join(map(repr, sorted(parts - there)))}"
    for what, keys in (("lacks", wanted.keys() - shapes.keys()), ("has surplus", shapes.keys() - wanted.keys())):
        if keys:
            return f"it {what} {first_of(sorted(keys))}"
    for key, shape in wanted.items():
        if shapes[key] != shape:
            return f"'{key}' has shape {shapes[key]}, the network needs {shape}"
    return None


def check_numbers(path: str | Path, state: Mapping[str, Tensor]) -> None:
    """Check that numbers, of any shape, are finite, step sizes positive, and zero points integers.

    Codes are integers and need no check; they are not unpacked for it.

    Raises:
        UserError: the message names the first tensor that fails.
    """
    for key in (key for key in state if not key.endswith(".codes")):
        x = state[key]
        right = torch.isfinite(x)
        if key.endswith(".delta"):
            right = right & (x > 0)
        elif key.endswith(".zero_point"):
            right = right & (x == x.round())
        if not right.all():
            raise UserError(
                f"'{path}': '{key}' holds {x[~right][0].item()}, which is impossible there: give another file"
            )
