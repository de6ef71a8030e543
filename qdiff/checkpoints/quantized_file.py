"""Our file of a quantized network: one safetensors file with packed codes, complete by itself.

The header has one metadata entry, `qdiff`: JSON with `format`, `version`, `family` (of networks), `config` (of the
network), `policy`, `codes` (layer, bits, shape and split of every packed weight, in order), `provenance`, `versions`
and `sha256`, the digest over all of these and over every tensor's name, type, shape and bytes. The same content gives
the same bytes.

Version 1 has the same bits in every layer. A policy with rules is written as version 2 and one with phases as version
3, because readers of earlier versions would overlook them.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from qdiff.checkpoints.content import CODES, PackedState, QuantizedFile
from qdiff.checkpoints.summary import Layer
from qdiff.errors import UserError
from qdiff.files.atomic import replacing
from qdiff.files.digest import canonical_json, content_digest
from qdiff.files.names import utf8_name
from qdiff.files.version import own_version
from qdiff.packing import pack
from qdiff.policy import QuantPolicy

FORMAT, UNIFORM, RULES, PHASES = "qdiff-quantized", 1, 2, 3  # and the versions
HEADER = "qdiff"  # a single entry, because safetensors writes several in random order


def write_quantized(path: str | Path, file: QuantizedFile) -> None:
    """Write one of our files; a file at `path` is replaced, and stays as it was if writing fails.

    Raises:
        ValueError: a code exceeds its layer's bits, or `config` or `provenance` are not JSON.
        UserError: the disk is full or cannot be written to.
    """
    bits = {path + CODES: layer.bits for path, layer in file.layers.items()}
    tensors = {key: _stored(key, x.detach().cpu().contiguous(), bits) for key, x in file.state.items()}
    header = {
        "format": FORMAT,
        "version": _version(file.policy),
        "family": file.family,
        "config": file.config,
        "policy": file.policy.to_dict(),
        "codes": [{"layer": path, **layer._asdict()} for path, layer in file.layers.items()],
        "provenance": file.provenance,
        "versions": {"qdiff": own_version() or "unknown", "torch": torch.__version__},
    }
    header = json.loads(canonical_json(header))  # what a reader will see: keys as strings, tuples as lists
    header["sha256"] = content_digest(header, tensors)
    try:
        with replacing(Path(path)) as partial:
            partial.write_bytes(save(tensors, {HEADER: canonical_json(header)}))
    except OSError as e:
        raise UserError(f"cannot write '{path}' ({e.strerror}): make room, or choose another place") from e


def _version(policy: QuantPolicy) -> int:
    """Return the first version whose readers understand a policy."""
    if policy.act_phases:
        return PHASES
    return RULES if policy.weight_rules or policy.act_rules else UNIFORM


def is_quantized(path: str | Path) -> bool:
    """Tell from the header whether a safetensors file is one of ours, even a damaged one; no tensor is read.

    Raises:
        UserError: not a whole safetensors file.
    """
    with _opened(path) as file:
        return _is_ours(file)


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
        if written[0] == FORMAT and isinstance(written[1], int) and written[1] > PHASES:
            raise UserError(f"'{path}' has format {written[1]}, this program reads {PHASES}: update qdiff to read it")
        if written not in [(FORMAT, UNIFORM), (FORMAT, RULES), (FORMAT, PHASES)]:
            raise ValueError(f"its format is {written[0]} {written[1]}")
        if text != canonical_json(header) or header.pop("sha256") != content_digest(header, tensors):
            raise ValueError("its sha256 does not agree")
        return _content(header, tensors)
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        cause = f"its header lacks {e}" if isinstance(e, KeyError) else e
        raise UserError(f"'{path}' is damaged ({cause}): copy or make it again") from e


def _content(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> QuantizedFile:
    codes = {code["layer"]: code for code in header["codes"]}
    layers = {path: Layer(tuple(code["shape"]), code["bits"], tuple(code["split"])) for path, code in codes.items()}
    return QuantizedFile(
        policy=QuantPolicy.from_dict(header["policy"]),
        family=header["family"],
        config=header["config"],
        layers=layers,
        state=PackedState(tensors, layers),
        provenance=header["provenance"],
        versions=header["versions"],
    )


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    """Open a safetensors file, whose tensors are read one by one. Raises UserError if it is missing or not whole."""
    try:
        with utf8_name(path) as name, safe_open(name, "pt") as file:
            yield file
    except OSError as e:
        raise UserError(f"cannot read '{path}' ({e.strerror or e}): give the path of a checkpoint file") from e
    except SafetensorError as e:
        raise UserError(f"'{path}' is not a whole safetensors file ({e}): copy or make it again") from e


def _is_ours(file: Any) -> bool:
    return HEADER in (file.metadata() or {}) or any(key.endswith(CODES) for key in file.keys())  # noqa: SIM118


def _stored(key: str, x: Tensor, bits: Mapping[str, int]) -> Tensor:
    if key in bits:
        return pack(x, bits[key])
    return _narrow(x) if key.endswith(".zero_point") else x


def _narrow(zero_point: Tensor) -> Tensor:
    """Convert to the smallest integer type that holds the values; unchanged if none does."""
    for dtype in (torch.uint8, torch.int16, torch.int32):
        small = zero_point.to(dtype)
        if torch.equal(small.to(zero_point.dtype), zero_point):
            return small
    return zero_point
