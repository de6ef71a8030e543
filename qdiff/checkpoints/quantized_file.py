"""Our file of a quantized network: one safetensors file with packed codes; nothing else is needed beside it.

The header has one metadata entry, `qdiff`: JSON with `format`, `version`, `family` (of networks), `config` (of the
network), `policy`, `codes` (layer, bits, shape and split of every packed weight, in order), `provenance`, `versions`
and `sha256`, the digest over all of these and over every tensor's name, type, shape and bytes. The same content gives
the same bytes.

Version 1 has the same bits in every layer. A policy with rules is written as version 2, because readers of version 1
would overlook them.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
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

FORMAT, UNIFORM, VERSION = "qdiff-quantized", 1, 2
HEADER = "qdiff"  # a single entry, because safetensors writes several in random order
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
    def facts(self) -> Facts:
        """What the file says about itself."""
        act, shapes = self.policy.act, self.shapes.items()
        return Facts(
            weight_bits=self.policy.weight.bits,
            split=self.policy.split,
            activations=Activations(act.symmetric, act.bits, self.policy.softmax_bits) if act else None,
            layers=dict(self.layers),
            parameters=sum(math.prod(s) for key, s in shapes if not key.endswith((".delta", ".zero_point"))),
            policy=self.policy,
        )


def write_quantized(path: str | Path, file: QuantizedFile) -> None:
    """Write `file` to `path`, whole or not at all; what was there is replaced.

    Raises:
        ValueError: a code exceeds its layer's bits, or `config` or `provenance` are not JSON.
        UserError: the disk refuses.
    """
    tensors = {key: x.detach().cpu().contiguous() for key, x in file.state.items()}
    for layer, (_, bits, _) in file.layers.items():
        tensors[layer + CODES] = pack(tensors[layer + CODES], bits)
    tensors |= {key: _narrow(x) for key, x in tensors.items() if key.endswith(".zero_point")}
    has_rules = file.policy.weight_rules or file.policy.act_rules
    header = {
        "format": FORMAT,
        "version": VERSION if has_rules else UNIFORM,
        "family": file.family,
        "config": file.config,
        "policy": file.policy.to_dict(),
        "codes": [{"layer": path, **layer._asdict()} for path, layer in file.layers.items()],
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
    """Tell from the header whether a safetensors file is one of ours, even a damaged one; no tensor is read.

    Raises:
        UserError: not a whole safetensors file.
    """
    with _opened(path) as file:
        return _is_ours(file)


def read_policy(path: str | Path) -> QuantPolicy:
    """Read how one of our files is quantized, from its header alone, unverified.

    Raises:
        UserError: missing, damaged, or not one of our files.
    """
    with _opened(path) as file:
        text = (file.metadata() or {}).get(HEADER)
    try:
        return QuantPolicy.from_dict(json.loads(text or "")["policy"])
    except (ValueError, TypeError, KeyError) as e:
        raise UserError(f"'{path}' is not a quantized file of this program: give one that it wrote") from e


def read_quantized(path: str | Path) -> QuantizedFile:
    """Read one of our files and verify its digest.

    Raises:
        UserError: missing, damaged, written by a later version, or not one of ours.
    """
    file = read_if_quantized(path)
    if file is None:
        raise UserError(f"'{path}' is a full-precision checkpoint without quantizers: use --ckpt or -r for it")
    return file


def read_if_quantized(path: str | Path) -> QuantizedFile | None:
    """Read a safetensors file if it is one of ours; None for any other one, of which no tensor is read.

    Raises:
        UserError: missing, damaged, or written by a later version.
    """
    with _opened(path) as file:
        if not _is_ours(file):
            return None
        text = (file.metadata() or {}).get(HEADER)
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    try:
        header = json.loads(text or "{}")
        written = header["format"], header["version"]
        if written[0] == FORMAT and isinstance(written[1], int) and written[1] > VERSION:
            raise UserError(f"'{path}' has format {written[1]}, this program reads {VERSION}: update qdiff to read it")
        if written not in [(FORMAT, UNIFORM), (FORMAT, VERSION)]:
            raise ValueError(f"its format is {written[0]} {written[1]}")
        if text != _json(header) or header.pop("sha256") != _digest(header, tensors):
            raise ValueError("its sha256 does not agree")
        return _content(header, tensors)
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        cause = f"its header lacks {e}" if isinstance(e, KeyError) else e
        raise UserError(f"'{path}' is damaged ({cause}): copy or make it again") from e


class _State(Mapping[str, Tensor]):
    """The tensors of a file. Codes are unpacked on each access: all of them at once would take twice the memory."""

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


def _content(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> QuantizedFile:
    codes = {code["layer"]: code for code in header["codes"]}
    layers = {path: Layer(tuple(code["shape"]), code["bits"], tuple(code["split"])) for path, code in codes.items()}
    return QuantizedFile(
        policy=QuantPolicy.from_dict(header["policy"]),
        family=header["family"],
        config=header["config"],
        layers=layers,
        state=_State(tensors, layers),
        provenance=header["provenance"],
        versions=header["versions"],
    )


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    """Open a safetensors file, which safetensors maps into memory. Raises UserError if it is not a whole one."""
    try:
        with utf8_name(path) as name, safe_open(name, "pt") as file:
            yield file
    except OSError as e:
        raise UserError(f"cannot read '{path}' ({e.strerror or e}): give the path of a checkpoint file") from e
    except SafetensorError as e:
        raise UserError(f"'{path}' is not a whole safetensors file ({e}): copy or make it again") from e


def _is_ours(file: Any) -> bool:
    return HEADER in (file.metadata() or {}) or any(key.endswith(CODES) for key in file.keys())  # noqa: SIM118


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
