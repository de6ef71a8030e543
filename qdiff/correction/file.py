"""The file of a correction: one safetensors file of six small tensors.

The header has one metadata entry, `qdiff-correction`: JSON with `format`, `version`, `fit`, `timesteps`, `log_snr`,
`parts`, `made_for` (what it belongs to), `provenance`, `versions`, and `sha256`, the digest over all of these and the
tensors.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from qdiff.correction.parts import Part
from qdiff.correction.table import TENSORS, CorrectionTable
from qdiff.errors import UserError
from qdiff.files.atomic import replacing
from qdiff.files.digest import canonical_json, content_digest
from qdiff.files.names import utf8_name
from qdiff.files.refusals import explaining
from qdiff.files.version import own_version

FORMAT, VERSION = "qdiff-correction", 1
FITTED = "fit it again with python -m qdiff correct"


def write_correction(path: str | Path, table: CorrectionTable) -> None:
    """Write a correction; a file at `path` is replaced, and stays as it was if writing fails.

    Raises:
        UserError: the disk is full or cannot be written to.
    """
    tensors = {name: getattr(table, name).contiguous() for name in TENSORS}
    header: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "fit": table.fit,
        "timesteps": table.timesteps,
        "log_snr": table.log_snr,
        "parts": {name: part.to_dict() for name, part in table.parts.items()},
        "made_for": table.made_for,
        "provenance": table.provenance,
        "versions": {"qdiff": own_version() or "unknown", "torch": torch.__version__},
    }
    header = json.loads(canonical_json(header))  # what a reader will see: tuples as lists
    header["sha256"] = content_digest(header, tensors)
    with explaining(Path(path), "--correct"), replacing(Path(path)) as partial:
        partial.write_bytes(save(tensors, {FORMAT: canonical_json(header)}))


def read_correction(path: str | Path) -> CorrectionTable:
    """Read a correction and verify its digest.

    Raises:
        UserError: missing, damaged, of another kind, or written by a later version.
    """
    try:
        with utf8_name(path) as name, safe_open(name, "pt") as file:
            text = (file.metadata() or {}).get(FORMAT)
            tensors = {} if text is None else {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except OSError as e:
        raise UserError(f"cannot read '{path}' ({e.strerror or e}): give the file of a correction") from e
    except SafetensorError as e:
        raise UserError(f"'{path}' is not a whole safetensors file ({e}): copy it, or {FITTED}") from e
    if text is None:
        raise UserError(f"'{path}' is not the file of a correction: {FITTED}")
    try:
        return _table(path, text, tensors)
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        cause = f"its header lacks {e}" if isinstance(e, KeyError) else e
        raise UserError(f"'{path}' is damaged ({cause}): copy it, or {FITTED}") from e


def _table(path: str | Path, text: str, tensors: Mapping[str, Tensor]) -> CorrectionTable:
    header = json.loads(text)
    version = header["version"]
    if header["format"] == FORMAT and isinstance(version, int) and version > VERSION:
        raise UserError(f"'{path}' has format {version}, this program reads {VERSION}: update qdiff to read it")
    if (header["format"], version) != (FORMAT, VERSION):
        raise ValueError(f"its format is {header['format']} {version}")
    if text != canonical_json(header) or header.pop("sha256") != content_digest(header, tensors):
        raise ValueError("its sha256 does not agree")
    if set(tensors) != set(TENSORS):
        raise ValueError(f"its tensors are {', '.join(tensors)}")
    return CorrectionTable(
        fit=header["fit"],
        timesteps=_numbers(header["timesteps"]),
        log_snr=_numbers(header["log_snr"]),
        parts={name: Part(**part) for name, part in header["parts"].items()},
        made_for=dict(header["made_for"]),
        provenance=dict(header["provenance"]),
        **tensors,
    )


def _numbers(values: list) -> tuple[float, ...]:
    if not all(isinstance(x, int | float) and math.isfinite(x) for x in values):
        raise ValueError("a timestep or noise level is not a finite number")
    return tuple(values)
