"""Content of one of our files: what it says about itself, and its tensors, whose codes stay packed until needed."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from qdiff.checkpoints.summary import Activations, CheckpointSummary, Layer
from qdiff.packing import packed_size, unpack
from qdiff.policy import QuantPolicy

CODES = ".codes"


@dataclass(frozen=True)
class QuantizedFile:
    """Content of one of our files.

    Attributes:
        policy: what is quantized how.
        family: `Adapter.family` of the network.
        config: of the network, JSON values.
        layers: the quantized layers by path, in definition order.
        state: tensors by key, as `QuantModel.quantized_state` returns them. In a file that was read, codes are unpacked
            on each access; ask `shapes` for shapes.
        provenance: where the numbers come from (settings, digests), JSON values.
        versions: of the software that wrote the file; filled in by `write_quantized`.
    """

    policy: QuantPolicy
    family: str
    config: Mapping[str, Any]
    layers: Mapping[str, Layer]
    state: Mapping[str, Tensor]
    provenance: Mapping[str, Any]
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def splits(self) -> dict[str, tuple[int, ...]]:
        """Input channels of each slice, by the path of the split layer."""
        return {path: layer.split for path, layer in self.layers.items() if layer.split}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor of `state`; no code is unpacked."""
        codes = {path + CODES: layer.shape for path, layer in self.layers.items()}
        return {key: codes[key] if key in codes else tuple(self.state[key].shape) for key in self.state}

    @property
    def summary(self) -> CheckpointSummary:
        """What the file tells about itself; no code is unpacked."""
        act, shapes = self.policy.act, self.shapes.items()
        return CheckpointSummary(
            weight_bits=self.policy.weight.bits,
            split=self.policy.split,
            activations=Activations(act.symmetric, act.bits, self.policy.softmax_bits) if act else None,
            layers=dict(self.layers),
            parameters=sum(math.prod(s) for key, s in shapes if not key.endswith((".delta", ".zero_point"))),
            policy=self.policy,
        )


class PackedState(Mapping[str, Tensor]):
    """Tensors of a file by key. Codes are unpacked on each access: all of them at once would take twice the memory.

    Args:
        tensors: as stored; codes packed, zero points of any integer type.
        layers: the quantized layers by path.

    Raises:
        KeyError: a layer has no codes.
        ValueError: codes do not have as many bytes as their shape and bits take.
    """

    def __init__(self, tensors: Mapping[str, Tensor], layers: Mapping[str, Layer]):
        self.packed = {path + CODES: (tensors[path + CODES], x.bits, x.shape) for path, x in layers.items()}
        zero_points = {key: x.float() for key, x in tensors.items() if key.endswith(".zero_point")}
        self.others = {key: x for key, x in tensors.items() if key not in self.packed} | zero_points
        for packed, bits, shape in self.packed.values():
            if packed.shape != (packed_size(torch.Size(shape).numel(), bits),):
                raise ValueError(f"codes of shape {shape} and {bits} bits do not take {len(packed)} bytes")

    def __getitem__(self, key: str) -> Tensor:
        return unpack(*self.packed[key]) if key in self.packed else self.others[key]

    def __iter__(self) -> Iterator[str]:
        return iter((*self.packed, *self.others))

    def __len__(self) -> int:
        return len(self.packed) + len(self.others)
