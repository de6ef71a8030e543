"""Decides which tensors of a full-precision checkpoint are a network's."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from qdiff.errors import UserError
from qdiff.files.state_dicts import WRAPPERS, StateDict, largest

NOTICED = 0.1  # fraction of a network's tensors from which unnamed averages count: those of a UNet alone must
SHARE = 0.5  # fraction of a network's tensors that a state dict must hold to count as its weights


def choose(
    path: str | Path, found: Sequence[StateDict], wanted: Mapping[str, Tensor], averages: bool | None
) -> tuple[StateDict, list[str]]:
    """Choose the state dict that holds a network's weights, under the network's names; shapes are not compared.

    A file may hold the weights below any keys, under prefixes (`module.`, `_orig_mod.`, `model.`), next to an optimizer
    or other networks.

    Args:
        path: the file, for the error message.
        found: its state dicts; at least one.
        wanted: the network's own state dict; only its names are used.
        averages: whether to take the averages if the file has both weights and averages; None if that is not known.

    Returns:
        the state dict that holds at least `SHARE` of the names, and a phrase for the log about every other one that
        does; the largest state dict if none does.

    Raises:
        UserError: several do, and `averages` does not decide between them.
    """
    fits = _distinct(part for state in found for part in _parts(state, wanted))
    if not fits:
        return largest(found).unwrapped(), []
    if averages and not any(state.averaged for state in fits):
        _refuse_unread_averages(path, found, wanted)
    chosen = fits if len(fits) == 1 else [state for state in fits if state.averaged == averages]
    if len(chosen) != 1:
        places = " and ".join(sorted(map(str, fits)))
        both = averages is None and len({state.averaged for state in fits}) > 1
        remedy = ", or say in the --config which, with model.ema: true for averages or false" if both else ""
        raise UserError(f"'{path}' holds several sets of weights, {places}: give a file with one of them{remedy}")
    reason = f"the configuration says {'ema: true' if averages else 'ema: false'}"
    notes = [f"left out {state} ({reason})" for state in fits if state is not chosen[0]]
    if chosen[0].outside:
        notes.append(f"left out {chosen[0].outside} tensors beside {chosen[0]} (under other names)")
    return chosen[0], notes


def _refuse_unread_averages(path: str | Path, found: Sequence[StateDict], wanted: Mapping[str, Tensor]) -> None:
    """Refuse a file whose averages, which are wanted, cannot be matched with the network's parameters."""
    known = {name.partition(".")[0] for name in wanted}
    for state in found:
        levels = {key.partition(".")[0] for key in state.tensors}
        inner = [state.under(f"{level}.") for level in levels - known]
        for part in [state, *inner]:
            if part.averaged and len(part.tensors) >= NOTICED * len(wanted):
                raise UserError(
                    f"'{path}' has averages under {part}, without the names of the network's parameters: give a file "
                    "that has them by name, or take the raw weights with ema: false (latent models: use_ema: false)"
                )


def _parts(state: StateDict, wanted: Mapping[str, Tensor]) -> Iterator[StateDict]:
    """Yield the network's weights within a state dict, for each prefix under which enough of its names stand."""
    wrappers = WRAPPERS - {part for name in wanted for part in name.split(".")}
    enough = _prefixes(state, wanted)
    if not enough:  # wrappers around most of the network's parts
        state = state.unwrapped(wrappers)
        enough = _prefixes(state, wanted)
    for prefix in enough:
        others = [other for other in enough if other != prefix and other.startswith(prefix)]
        yield state.under(prefix, others).unwrapped(wrappers)


def _distinct(states: Iterable[StateDict]) -> list[StateDict]:
    """Drop state dicts that hold the same tensors as an earlier one."""
    by_tensors: dict[frozenset[tuple[str, int]], StateDict] = {}
    for state in states:
        by_tensors.setdefault(frozenset((name, x.data_ptr()) for name, x in state.tensors.items()), state)
    return list(by_tensors.values())


def _prefixes(state: StateDict, wanted: Mapping[str, Tensor]) -> list[str]:
    """Find the prefixes under which a state dict holds at least `SHARE` of the names."""
    counts = Counter(prefix for key in state.tensors for prefix, name in _endings(key) if name in wanted)
    return [prefix for prefix, count in counts.items() if count >= SHARE * len(wanted)]


def _endings(key: str) -> Iterator[tuple[str, str]]:
    """Yield every way to split a dotted name into a prefix and a name."""
    parts = key.split(".")
    return ((".".join([*parts[:i], ""]) if i else "", ".".join(parts[i:])) for i in range(len(parts)))
