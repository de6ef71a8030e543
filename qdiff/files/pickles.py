"""Safe reading of torch.save files, zip and the older format: no code in them is run."""

import shlex
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile, is_zipfile

import torch
from torch.serialization import safe_globals

from qdiff.errors import UserError
from qdiff.files.formats import WEIGHTS, format_of, zip_kind
from qdiff.files.names import utf8_name
from qdiff.files.stand_ins import StandIns, refused_name

# Script that keeps only dicts, lists and tensors; for users who trust the author of a refused file
EXPORT = (
    "import sys,torch; f=lambda x: x if torch.is_tensor(x) else f(x.state_dict()) if hasattr(x,'state_dict') else "
    "{k: f(v) for k,v in x.items()} if isinstance(x,dict) else [f(v) for v in x] if isinstance(x,(list,tuple)) else "
    "None; torch.save(f(torch.load(sys.argv[1],'cpu',weights_only=False)),sys.argv[2])"
)


def load_pickle(path: str | Path) -> Any:
    """Read a torch checkpoint (.pth, .ckpt, .pt) onto the CPU; nothing that it names is imported or executed.

    Objects of trainers' classes become inert; see `qdiff.files.stand_ins`. Every member of a zip has its checksum
    verified, and tensors are memory-mapped. The older format (before torch 1.6) has no checksums, so a flipped bit in
    its numbers goes unnoticed.

    Returns:
        the saved object: usually a dict, or a list as the DDIM training code writes it.

    Raises:
        UserError: as `format_of`; or the file is damaged, cut short, not a torch checkpoint, or names functions.
    """
    kind = format_of(path)
    if kind == "safetensors":
        raise UserError(f"'{path}' is a safetensors file, despite its suffix: give a file that torch.save wrote")
    with explained(path, "torch checkpoint"), warnings.catch_warnings():
        mmap = kind == "zip" and _verify_zip(path)
        warnings.simplefilter("ignore")  # deprecations inside torch, which are not the user's concern
        return _load(path, mmap)


def _load(path: str | Path, mmap: bool) -> Any:
    stand_ins = StandIns()
    while True:
        try:
            with safe_globals(stand_ins.classes), utf8_name(path) as name, open(name, "rb") as file:
                return torch.load(name if mmap else file, map_location="cpu", weights_only=True, mmap=mmap)
        except Exception as e:  # torch documents no common type
            if not stand_ins.learn(_cause(e)):
                raise


def _verify_zip(path: str | Path) -> bool:
    """Check every member's CRC-32, which torch skips for mapped files; return whether the file can be mapped."""
    if not is_zipfile(path):
        raise UserError(
            f"'{path}' is incomplete: it begins as torch.save writes, but its end is missing: copy it again"
        )
    with ZipFile(path) as archive:
        bad = archive.testzip()
        if bad is not None:
            raise BadZipFile(f"wrong checksum of {bad}")
        if kind := zip_kind(archive):
            raise UserError(f"'{path}' is {kind}")
        # torch would map compressed members as numbers, and takes the suffix below for another format
        stored = all(member.compress_type == ZIP_STORED for member in archive.infolist())
    return stored and Path(path).suffix != ".safetensors"


@contextmanager
def explained(path: str | Path, what: str) -> Iterator[None]:
    """Turn any error that a damaged or hostile file causes in a parser into a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as e:  # parsers document no common type
        cause = _cause(e)
        reason = " ".join(_printable(f"{type(cause).__name__}: {cause}").split())[:200]
        if name := refused_name(cause):
            reason = f"its pickle names '{_printable(name)}', which may be code"
        if name or (isinstance(cause, UnpicklingError) and is_zipfile(path)):  # torch.save wrote it
            command = f'python -c "{EXPORT}" {shlex.quote(str(path))} tensors.pt'
            raise UserError(
                f"'{path}' is refused ({reason}); nothing in it was executed. If you trust its author, export the "
                f"tensors where it can be loaded: {command}"
            ) from e
        raise UserError(f"'{path}' cannot be read as a {what} ({reason}): {WEIGHTS}") from e


def _cause(error: Exception) -> BaseException:
    """Return the error inside torch, which wraps it in a page of advice."""
    return error.__context__ if error.__suppress_context__ and error.__context__ else error


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)
