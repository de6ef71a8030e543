"""Converts calibrated checkpoints of the original Q-Diffusion code to our state, dict to dict.

For each layer the original stores the FP weight, the variable of learned rounding `alpha`, `delta` and `zero_point`;
the second slice of a split layer has its own under `weight_quantizer_0` and `act_quantizer_0`. The quantizers of some
attention products stand under the module that holds the product (its owner). Bits and symmetry are not stored, but the
numbers reveal the bits of the weights and whether activations are symmetric.
"""

import math
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from qdiff.checkpoints.summary import Activations, CheckpointSummary, Layer
from qdiff.policy import QuantPolicy, QuantSpec

SLOTS = ("weight_quantizer", "weight_quantizer_0")  # channels from below, channels of the skip connection
FIELDS = ("alpha", "delta", "zero_point")

Shape = tuple[int, ...]
State = Mapping[str, Tensor]


def is_original(state: State) -> bool:
    """Tell from its keys whether a state dict is a calibrated checkpoint of the original."""
    return any(key.endswith(tuple(f".{SLOTS[0]}.{field}" for field in FIELDS)) for key in state)


def summarize(state: State) -> CheckpointSummary:
    """Find out how a file is quantized, from its tensors alone.

    Raises:
        ValueError: a layer is incomplete, or the step sizes fit no number of bits.
    """
    paths = dict.fromkeys(key.partition(f".{SLOTS[0]}.")[0] for key in state if f".{SLOTS[0]}." in key)
    slices = {path: _slice_channels(state, path) for path in paths}
    bits = _weight_bits(state, paths)
    layers = {path: Layer(tuple(state[f"{path}.weight"].shape), bits, split) for path, split in slices.items()}
    act = {key: x for key, x in state.items() if ".act_quantizer" in key}
    return CheckpointSummary(
        weight_bits=bits,
        split=any(layer.split for layer in layers.values()),
        activations=Activations(_symmetric(act)) if act else None,
        layers=layers,
        parameters=sum(x.numel() for key, x in state.items() if "_quantizer" not in key),
        policy=None,
    )


def original_shapes(
    shapes: Mapping[str, Shape], splits: Mapping[str, Shape], owners: Mapping[str, str]
) -> dict[str, Shape]:
    """Return the keys and shapes that the original's file of the same network has.

    Args:
        shapes: keys and shapes of our state.
        splits: input channels of the slices, by path of the split layer.
        owners: path of the owner, by path of the product; only products whose quantizers the original keeps there.
    """
    out: dict[str, Shape] = {}
    for key, shape in shapes.items():
        layer, is_codes, _ = key.partition(".codes")
        if is_codes:
            out[f"{layer}.weight"] = shape
            for slot, channels in zip(SLOTS, splits.get(layer, shape[1:2])):
                out[f"{layer}.{slot}.alpha"] = (shape[0], channels, *shape[2:])
        else:
            out[_original_key(key, owners)] = shape
    return out


def from_original(
    state: State, shapes: Mapping[str, Shape], policy: QuantPolicy, owners: Mapping[str, str]
) -> dict[str, Tensor]:
    """Convert the original's state to ours.

    Args:
        state: as saved, with the prefix `model.`, the keys and shapes of `original_shapes`, and finite numbers.
        shapes: keys and shapes of our state.
        policy: how weights are quantized.
        owners: as for `original_shapes`.

    Returns:
        tensors by the keys of `shapes`: `.codes` are offset codes, uint8 in the weight's shape; the others as saved.
    """
    return {
        key: _codes(state, layer, policy.weight_for(layer))
        if (layer := key.removesuffix(".codes")) != key
        else state[_original_key(key, owners)]
        for key in shapes
    }


def _original_key(key: str, owners: Mapping[str, str]) -> str:
    path, is_operand, rest = key.partition(".act_quantizer_")
    key = f"{owners.get(path, path)}{is_operand}{rest}"
    return key.replace("_quantizer.parts.0.", "_quantizer.").replace("_quantizer.parts.1.", "_quantizer_0.")


def _slices(state: State, path: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the key of each weight quantizer of a layer, and the slice of the weight that it rounds."""
    slots = [f"{path}.{slot}" for slot in SLOTS if f"{path}.{slot}.alpha" in state]
    return zip(slots, state[f"{path}.weight"].split([state[f"{slot}.alpha"].shape[1] for slot in slots], dim=1))


def _codes(state: State, path: str, spec: QuantSpec) -> Tensor:
    """Compute the offset codes of a layer, clamp(floor(w / delta) + (alpha >= 0) + zero_point, lo, hi) - lo."""
    parts = []
    for slot, weight in _slices(state, path):
        alpha, delta, zero_point = (state[f"{slot}.{field}"] for field in FIELDS)
        parts.append((weight / delta).floor() + (alpha >= 0) + zero_point)
    lo, hi = spec.bounds
    return (torch.cat(parts, dim=1).clamp(lo, hi) - lo).to(torch.uint8)


def _slice_channels(state: State, path: str) -> Shape:
    """Return the input channels of each slice of a layer, () if it is not split.

    Raises:
        ValueError: the layer lacks a tensor, or their shapes contradict each other.
    """
    slots = [slot for slot in SLOTS if any(f"{path}.{slot}.{field}" in state for field in FIELDS)]
    names = [f"{path}.weight", *(f"{path}.{slot}.{field}" for slot in slots for field in FIELDS)]
    lacking = [name for name in names if name not in state]
    if lacking and not any(name.endswith(".alpha") for name in lacking):
        raise ValueError(
            f"'{lacking[0]}' is missing although its layer has a rounding variable, as in the temporary files of an "
            "unfinished calibration: use the file that the finished run saved"
        )
    if lacking:
        raise ValueError(f"'{lacking[0]}' is missing: give the file that the finished calibration saved")
    shape = tuple(state[f"{path}.weight"].shape)
    alphas = [tuple(state[f"{path}.{slot}.alpha"].shape) for slot in slots]
    channels = tuple(alpha[1] for alpha in alphas if len(alpha) > 1)
    scales = {tuple(state[f"{path}.{slot}.{field}"].shape) for slot in slots for field in ("delta", "zero_point")}
    per_channel = (*shape[:1], *[1] * len(shape[1:]))
    if (
        (sum(channels),) != shape[1:2]
        or alphas != [(shape[0], c, *shape[2:]) for c in channels]
        or scales != {per_channel}
    ):
        raise ValueError(f"the quantizers of '{path}' do not fit its weight: give a file that the original saved")
    return channels if len(slots) > 1 else ()


def _weight_bits(state: State, layers: Iterable[str]) -> int:
    """Find the b for which the range of a channel is 2^b - 1 steps wide, in the median over all channels of the file.

    The original computes the step size from the whole range of a channel, so this is exact. Only step sizes from ranges
    that were shrunk to less than half would mislead it.
    """
    steps = []
    for path in layers:
        for slot, weight in _slices(state, path):
            rows = weight.flatten(1)
            steps.append((rows.amax(1) - rows.amin(1)) / state[f"{slot}.delta"].flatten())
    median = float(torch.cat(steps).median())
    bits = int(math.log2(median + 1) + 0.01) if 0 <= median < math.inf else 0
    if not 2 <= bits <= 8:
        raise ValueError(
            f"a weight's range is {median:.4g} steps wide, which fits no bit width: give a file that the original saved"
        )
    return bits


def _symmetric(act: State) -> bool:
    """Tell whether every zero point is 0, as asymmetric ones are only if no activation is ever negative."""
    return not any(bool(x.any()) for key, x in act.items() if key.endswith(".zero_point"))
