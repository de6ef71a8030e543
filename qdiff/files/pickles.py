"""Checkpoints written by others: torch pickles, zip and the older format, and safetensors; no code in them is run."""

import re
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import safe_globals

from qdiff.errors import UserError

Format = Literal["zip", "safetensors", "pickle"]

NOT_A_CHECKPOINT = {
    b"<": "a web page, as a failed download leaves it: download the file again",
    b"version https://git-lfs": "a Git LFS pointer: run `git lfs pull` to get the file itself",
}


class _Inert:
    """Stands in for a class that a pickle names beside its tensors: takes any arguments and state, keeps none."""

    def __new__(cls, *_args):
        return super().__new__(cls)

    def __setstate__(self, _state):
        pass


# What Lightning, OmegaConf, argparse and numpy leave in published checkpoints. Nothing here is ever imported.
KNOWN_CLASSES = {
    "pytorch_lightning.callbacks.model_checkpoint": ["ModelCheckpoint"],
    "pytorch_lightning.callbacks.early_stopping": ["EarlyStopping"],
    "omegaconf.dictconfig": ["DictConfig"],
    "omegaconf.listconfig": ["ListConfig"],
    "omegaconf.base": ["Metadata", "ContainerMetadata"],
    "omegaconf.nodes": ["AnyNode", "StringNode", "IntegerNode", "FloatNode", "BooleanNode"],
    "numpy": ["dtype", "ndarray"],
    "numpy.core.multiarray": ["scalar", "_reconstruct"],
    "numpy._core.multiarray": ["scalar", "_reconstruct"],
    "argparse": ["Namespace"],
    "collections": ["defaultdict"],
    "typing": ["Any"],
    "builtins": ["dict", "list", "str", "int", "float", "bool"],
}
STAND_INS = [
    (type(name, (_Inert,), {}), f"{module}.{name}") for module, names in KNOWN_CLASSES.items() for name in names
]


def format_of(path: str | Path) -> Format:
    """The format of a checkpoint, decided by its first bytes and never by its suffix.

    Returns:
        "safetensors"; "zip" (torch.save since 1.6); "pickle" (anything else that only torch.load can judge).

    Raises:
        UserError: missing, a directory, unreadable, empty, a web page, or a Git LFS pointer.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(64)
    except OSError as e:
        raise UserError(f"cannot read '{path}' ({e.strerror}): give the path of a checkpoint file") from e
    if not head:
        raise UserError(f"'{path}' is empty: download or copy it again")
    for start, what in NOT_A_CHECKPOINT.items():
        if head.lstrip().startswith(start):
            raise UserError(f"'{path}' is no checkpoint but {what}")
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    return "safetensors" if head[8:9] == b"{" else "pickle"  # after the header's length comes its JSON


def load_pickle(path: str | Path) -> Any:
    """Read a torch checkpoint (.pth, .ckpt, .pt) onto the CPU; nothing that it names is imported or executed.

    Of classes, only `KNOWN_CLASSES` may stand beside the tensors; they become inert objects. The checksum of every
    member of a zip is verified in a stream, and its tensors are mapped, not read. The older format (before torch 1.6)
    has no checksum, so a flipped bit among its numbers goes unnoticed.

    Returns:
        what was saved: as a rule a dict, or a list as the DDIM training code writes it; see `state_dict_of`.

    Raises:
        UserError: as `format_of`; also damaged, cut short, no torch checkpoint, or a pickle that names other code.
    """
    kind = format_of(path)
    if kind == "safetensors":
        raise UserError(f"'{path}' is a safetensors file, whatever its suffix: a torch pickle is expected here")
    mmap = kind == "zip" and _verify_zip(path)
    with _refusing(path, "torch checkpoint"), open(path, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside torch, which the user cannot mend
        with safe_globals(STAND_INS):
            return torch.load(path if mmap else file, map_location="cpu", weights_only=True, mmap=mmap)


def state_dict_of(obj: Any, path: str | Path) -> dict[str, Tensor]:
    """The weights inside a checkpoint: below `state_dict` or `model`, or first in the list of the DDIM training code.

    Args:
        obj: what `load_pickle` returned.
        path: its file, for the error message.

    Returns:
        name -> tensor, without gradient; a `module.` that DataParallel put before every name is taken off.

    Raises:
        UserError: there is no dict of tensors.
    """
    if isinstance(obj, list) and obj:
        obj = obj[0]
    for layer in ("state_dict", "model"):
        if isinstance(obj, dict) and isinstance(obj.get(layer), dict):
            obj = obj[layer]
    if not isinstance(obj, dict) or not obj:
        raise UserError(f"'{path}' holds no weights but a {type(obj).__name__}: give a checkpoint with a state dict")
    for key, value in obj.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            found = f"{key!r} is a {type(value).__name__}"
            raise UserError(f"'{path}' holds more than weights ({found}): give a checkpoint with a state dict")
    prefix = "module." if all(key.startswith("module.") for key in obj) else ""
    return {key.removeprefix(prefix): value.detach() for key, value in obj.items()}


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict of a full-precision checkpoint, safetensors or pickle, on the CPU and mapped where possible.

    Raises:
        UserError: as `load_pickle` and `state_dict_of`.
    """
    if format_of(path) != "safetensors":
        return state_dict_of(load_pickle(path), path)
    with _refusing(path, "safetensors file"):
        weights = load_file(path)
    return state_dict_of(weights, path)


def _verify_zip(path: str | Path) -> bool:
    """Check every member's CRC-32, which torch does not do when it maps a file; whether the file can be mapped."""
    with _refusing(path, "torch checkpoint"), ZipFile(path) as archive:
        bad = archive.testzip()
        if bad is not None:
            raise BadZipFile(f"wrong checksum of {bad}")
        # torch would map a compressed member as if it were numbers, and takes the suffix below for another format
        stored = all(member.compress_type == ZIP_STORED for member in archive.infolist())
    return stored and Path(path).suffix != ".safetensors"


@contextmanager
def _refusing(path: str | Path, what: str):
    """Turn whatever a damaged or hostile file makes a parser raise into one line."""
    try:
        yield
    except Exception as e:  # the parsers promise no common type
        cause = e.__context__ if e.__suppress_context__ and e.__context__ else e  # torch wraps it in a page of advice
        refused = re.search(r"GLOBAL (\S+)", str(cause))
        if refused:
            raise UserError(
                f"'{path}' is refused: its pickle names {refused[1]!r}, which could run code; nothing in it was "
                "executed. Use a checkpoint of tensors only, or download it again if it may be damaged"
            ) from e
        text = "".join(c if c.isprintable() else " " for c in f"{type(cause).__name__}: {cause}")
        reason = " ".join(text.split())[:200]
        raise UserError(
            f"'{path}' is not a whole {what} ({reason}): download or copy it again, or give another file"
        ) from e
