"""State dicts inside a checkpoint, at whatever place its trainer put them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from qdiff.errors import UserError
from qdiff.files.formats import format_of
from qdiff.files.names import utf8_name
from qdiff.files.pickles import explained, load_pickle
from qdiff.files.stand_ins import Inert

DEPTH = 4  # levels of dicts and lists that are searched; trainers nest two or three
# Levels that DataParallel, torch.compile, FSDP and activation checkpointing add to names
WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})

_AVERAGES = re.compile(r"EMA|(?<![A-Za-z])(?i:ema|swa|polyak|avg|averaged?|shadow)(?![A-Za-z])")
_ONLINE = re.compile(r"online|(^|[^a-z])(raw|backup)([^a-z]|$)", re.IGNORECASE)


@dataclass(frozen=True)
class StateDict:
    """Named tensors of a file.

    Attributes:
        place: keys that lead to them, such as "state_dict.model" or "[4]"; "" for the top level.
        tensors: name -> tensor on the CPU, memory-mapped where possible, without gradient.
        averaged: whether the place says that they are averages over training (EMA).
        outside: number of tensors of the same dict that are left out.
    """

    place: str
    tensors: Mapping[str, Tensor]
    averaged: bool
    outside: int = 0

    def __str__(self) -> str:
        return f"'{self.place}'" if self.place else "its top level"

    def unwrapped(self, wrappers: frozenset[str] = WRAPPERS) -> "StateDict":
        """Remove the levels `wrappers` from the names, unless two names would become one."""
        names = {key: ".".join(part for part in key.split(".") if part not in wrappers) for key in self.tensors}
        if len(set(names.values())) < len(names):
            return self
        return replace(self, tensors={names[key]: x for key, x in self.tensors.items()})

    def under(self, prefix: str, without: Sequence[str] = ()) -> "StateDict":
        """Take the tensors under `prefix`, which is removed, but not those under the longer prefixes `without`."""
        tensors = {
            key.removeprefix(prefix): x
            for key, x in self.tensors.items()
            if key.startswith(prefix) and not key.startswith(tuple(without))
        }
        place = ".".join(part for part in (self.place, prefix.rstrip(".")) if part)
        averaged = (self.averaged or _says_averages(prefix)) and not _ONLINE.search(prefix)
        return StateDict(place, tensors, averaged, outside=len(self.tensors) - len(tensors))


def read_state_dicts(path: str | Path) -> list[StateDict]:
    """Read every state dict of a checkpoint, safetensors or pickle.

    Raises:
        UserError: as `load_pickle`; or the file has no named tensors, or tensors that are not dense.
    """
    if format_of(path) == "safetensors":
        with explained(path, "safetensors file"), utf8_name(path) as name:
            content = load_file(name)
    else:
        content = load_pickle(path)
    found = list(find_state_dicts(content))
    if not found:
        raise UserError(
            f"'{path}' contains no named tensors but {_described(content)}: give a checkpoint with a state dict"
        )
    for state in found:
        _check_kinds(path, state)
    return found


def _check_kinds(path: str | Path, state: StateDict) -> None:
    for key, x in state.tensors.items():
        if x.is_meta or x.layout != torch.strided:
            kind = "has no values (it is on the meta device)" if x.is_meta else f"is a {x.layout} tensor"
            raise UserError(f"'{path}': '{key}' {kind}: give a file of dense tensors")


def find_state_dicts(content: Any, place: str = "", depth: int = DEPTH) -> Iterator[StateDict]:
    """Find every dict of named tensors, down to `depth` levels; other entries are ignored.

    The DDIM training code writes a list of weights, optimizer, epoch, step and averages, so state dicts after the
    first entry of a list are averages. Under a key that says "averages", lists of tensors are found too, named by
    index: they cannot be loaded, but the caller learns that they exist.
    """
    if not depth:
        return
    entries = _entries(content)
    named = isinstance(content, Mapping | Inert) or _says_averages(place)
    tensors = {key: x.detach() for key, x in entries.items() if isinstance(x, Tensor)} if named else {}
    if tensors:
        yield StateDict(place, tensors, _says_averages(place))
    weights = False
    for key, value in entries.items():
        inner = f"[{key}]" if isinstance(content, list | tuple) else f".{key}"
        for found in find_state_dicts(value, f"{place}{inner}".removeprefix("."), depth - 1):
            yield replace(found, averaged=found.averaged or weights)
        weights = weights or (not place and isinstance(content, list | tuple))


def _entries(content: Any) -> dict[str, Any]:
    """Return the entries of a dict, a list or a trainer's helper, by name or index."""
    if isinstance(content, Inert):
        content = content.state
    if isinstance(content, Mapping):
        return {str(key): value for key, value in content.items()}
    return {str(i): value for i, value in enumerate(content)} if isinstance(content, list | tuple) else {}


def largest(found: Sequence[StateDict]) -> StateDict:
    """Return the state dict with the most tensors, the first of several."""
    return max(found, key=lambda state: len(state.tensors))


def _says_averages(place: str) -> bool:
    return bool(_AVERAGES.search(place)) and not _ONLINE.search(place)


def _described(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"a dict of {', '.join(repr(key) for key in list(content)[:3]) or 'nothing'}"
    return f"an object of {type(content).__module__}.{type(content).__qualname__}".replace("builtins.", "")
