"""Our file of a quantized network: one safetensors file with packed codes; nothing else is needed beside it.

The header has one metadata entry, `qdiff`: JSON with `format`, `version`, `family` (of networks), `config` (of the
network), `policy`, `codes` (layer, bits, shape and split of every packed weight, in order), `provenance`, `versions`
and `sha256`, the digest over all of these and over every tensor's name, type, shape and bytes. The same content gives
the same bytes.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from qdiff.checkpoints.summary import Activations, Facts, Layer
from qdiff.errors import UserError
from qdiff.files.atomic import replacing
from qdiff.files.digest import digest, tensor_bytes
from qdiff.files.names import utf8_name
from qdiff.files.version import own_version
from qdiff.packing import pack, packed_size, unpack
from qdiff.policy import QuantPolicy

FORMAT, VERSION = "qdiff-quantized", 1
HEADER = "qdiff"  # a single entry, because safetensors writes several in random order
CODES = ".codes"


@dataclass(frozen=True)
class QuantizedFile:
    """Content of one of our files.

    Attributes:
        policy: what is quantized how.
        family: of networks, a key of `qdiff.adapters.FAMILIES`.
        config: of the network, JSON values.
        splits: path of each split layer -> input channels of its slices.
        state: as `QuantModel.quantized_state` gives it; codes as uint8 in the weight's shape, those of a file that was
            read unpacked whenever they are asked for.
        provenance: where the numbers come from (settings, digests), JSON values.
        versions: of the software that wrote the file; filled in by `write_quantized`.
    """

    policy: QuantPolicy
    family: str
    config: Mapping[str, Any]
    splits: Mapping[str, tuple[int, ...]]
    state: Mapping[str, Tensor]
    provenance: Mapping[str, Any]
    versions: Mapping[str, str] | None = None

    @cached_property
    def facts(self) -> Facts:
        """What the file says about itself."""
        act = self.policy.act
        shapes = {key: tuple(x.shape) for key, x in self.state.items()}  # one by one, because codes are unpacked for it
        return Facts(
            weight_bits=self.policy.weight.bits,
            split=self.policy.split,
            activations=act and Activations(act.symmetric, act.bits, self.policy.softmax_bits),
            layers={
                path: Layer(shape, self.splits.get(path, ()))
                for key, shape in shapes.items()
                if (path := key.removesuffix(CODES)) != key
            },
            parameters=sum(math.prod(s) for key, s in shapes.items() if not key.endswith((".delta", ".zero_point"))),
        )


def write_quantized(path: str | Path, file: QuantizedFile) -> None:
    """Write `file` to `path`, whole or not at all; what was there is replaced.

    Raises:
        ValueError: a code exceeds the policy's bits, or `config` or `provenance` are not JSON.
        UserError: the disk refuses.
    """
    bits, codes, tensors = file.policy.weight.bits, [], {}
    for key, x in file.state.items():
        stored = x.detach().cpu().contiguous()
        if key.endswith(CODES):
            layer = key.removesuffix(CODES)
            codes.append({"layer": layer, "bits": bits, "shape": x.shape, "split": file.splits.get(layer, ())})
            stored = pack(stored, bits)
        elif key.endswith(".zero_point"):
            stored = _narrow(stored)
        tensors[key] = stored
    header = {
        "format": FORMAT,
        "version": VERSION,
        "family": file.family,
        "config": file.config,
        "policy": file.policy.to_dict(),
        "codes": codes,
        "provenance": file.provenance,
        "versions": {"qdiff": own_version() or "unknown", "torch": torch.__version__},
    }
    header = json.loads(_json(header))  # what a reader will see: keys as strings, tuples as lists
    header["sha256"] = _digest(header, tensors)
    try:
        with replacing(Path(path)) as partial:
            partial.write_bytes(save(tensors, {HEADER: _json(header)}))
    except OSError as e:
        raise UserError(f"cannot write '{path}' ({e.strerror}): mend that, or choose another place") from e


def is_quantized(path: str | Path) -> bool:
    """Whether a safetensors file is one of ours, even a damaged one.

    Raises:
        UserError: not a whole safetensors file.
    """
    header, tensors = _open(path)
    return header is not None or any(key.endswith(CODES) for key in tensors)


def read_quantized(path: str | Path) -> QuantizedFile:
    """Read one of our files and verify its digest.

    Raises:
        UserError: missing, damaged, written by a later version, or no file of ours.
    """
    text, tensors = _open(path)
    if text is None and not any(key.endswith(CODES) for key in tensors):
        raise UserError(f"'{path}' is a full-precision checkpoint without quantizers: use --ckpt or -r for it")
    try:
        header = json.loads(text or "{}")
        written = header["format"], header["version"]
        if written[0] == FORMAT and isinstance(written[1], int) and written[1] > VERSION:
            raise UserError(f"'{path}' has format {written[1]}, this program reads {VERSION}: update qdiff to read it")
        if written != (FORMAT, VERSION):
            raise ValueError(f"its format is {written[0]} {written[1]}")
        if text != _json(header) or header.pop("sha256") != _digest(header, tensors):
            raise ValueError("its sha256 does not agree")
        return _content(header, tensors)
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        cause = f"its header lacks {e}" if isinstance(e, KeyError) else e
        raise UserError(f"'{path}' is damaged ({cause}): copy or make it again") from e


class _State(Mapping[str, Tensor]):
    """The tensors of a file. Codes are unpacked when they are asked for: together they would take twice the memory."""

    def __init__(self, tensors: Mapping[str, Tensor], codes: Sequence[Mapping[str, Any]]):
        self.packed = {c["layer"] + CODES: (tensors[c["layer"] + CODES], c["bits"], tuple(c["shape"])) for c in codes}
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


def _content(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> QuantizedFile:
    return QuantizedFile(
        policy=QuantPolicy.from_dict(header["policy"]),
        family=header["family"],
        config=header["config"],
        splits={code["layer"]: tuple(code["split"]) for code in header["codes"] if code["split"]},
        state=_State(tensors, header["codes"]),
        provenance=header["provenance"],
        versions=header["versions"],
    )


def _open(path: str | Path) -> tuple[str | None, dict[str, Tensor]]:
    try:
        with utf8_name(path) as name, safe_open(name, "pt") as file:
            return (file.metadata() or {}).get(HEADER), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except OSError as e:
        raise UserError(f"cannot read '{path}' ({e.strerror or e}): give the path of a checkpoint file") from e
    except SafetensorError as e:
        raise UserError(f"'{path}' is not a whole safetensors file ({e}): copy or make it again") from e


def _narrow(zero_point: Tensor) -> Tensor:
    """The same integers in as few bytes as they need."""
    for dtype in (torch.uint8, torch.int16, torch.int32):
        small = zero_point.to(dtype)
        if torch.equal(small.to(zero_point.dtype), zero_point):
            return small
    return zero_point


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _digest(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    parts: list[bytes | memoryview] = [_json(header).encode()]
    for key, x in sorted(tensors.items()):
        parts += [_json([key, str(x.dtype), list(x.shape)]).encode(), tensor_bytes(x)]
    return digest(parts)
