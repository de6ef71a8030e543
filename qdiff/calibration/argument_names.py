"""Names of the arguments of a call, by which files hold them."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


def named_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors (N, ...) and the constants of a call by name.

    Positional arguments are named `0`, `1`, ..., keyword arguments by their keyword, what is inside a list or dict by
    its path, as `added.ids` or `residuals.0`. The order is that of the positions, then of the alphabet.

    Raises:
        ValueError: a constant that JSON cannot hold, or a key of a dict that is not a name.
    """
    leaves: dict[str, Any] = {}
    for key, x in [*enumerate(args), *sorted(kwargs.items())]:
        _collect(str(key), x, leaves)
    tensors = {name: x for name, x in leaves.items() if isinstance(x, Tensor)}
    return tensors, {name: x for name, x in leaves.items() if name not in tensors}


def _collect(name: str, tree: Any, leaves: dict[str, Any]) -> None:
    if isinstance(tree, dict | list | tuple) and tree:
        for key, x in sorted(tree.items()) if isinstance(tree, dict) else enumerate(tree):
            if isinstance(tree, dict) and not (isinstance(key, str) and key.isidentifier()):
                raise ValueError(f"the key {key!r} of the argument {name} is not a name: a file cannot hold it")
            _collect(f"{name}.{key}", x, leaves)
    elif isinstance(tree, Tensor | None | bool | int | float | str | list | tuple | dict):
        leaves[name] = list(tree) if isinstance(tree, tuple) else tree
    else:
        raise ValueError(f"the argument {name} is a {type(tree).__name__}: a file cannot hold it")


def arguments(leaves: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and keyword arguments that `named_arguments` named; tuples within come back as lists.

    Raises:
        ValueError: positional arguments are missing.
    """
    tree = _grown(leaves)
    kwargs = {key: x for key, x in tree.items() if not key.isdigit()}
    return tuple(_listed({key: x for key, x in tree.items() if key.isdigit()})), kwargs


def _grown(leaves: Mapping[str, Any]) -> dict[str, Any]:
    groups: dict[str, dict[str, Any]] = {}
    for name, x in leaves.items():
        key, _, rest = name.partition(".")
        groups.setdefault(key, {})[rest] = x
    return {key: group[""] if "" in group else _tree(group) for key, group in groups.items()}


def _tree(leaves: Mapping[str, Any]) -> dict[str, Any] | list[Any]:
    grown = _grown(leaves)
    return _listed(grown) if all(key.isdigit() for key in grown) else grown


def _listed(items: Mapping[str, Any]) -> list[Any]:
    if {*items} != {str(i) for i in range(len(items))}:
        raise ValueError(f"arguments {', '.join(sorted(items))}: some are missing")
    return [items[str(i)] for i in range(len(items))]
