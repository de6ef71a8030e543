"""Inert classes that replace those named in a pickle, so that nothing is imported or executed."""

import re
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

# Names of the standard library and torch that are accepted: types of data
STANDARD = re.compile(
    r"(argparse\.Namespace|collections\.\w+|copyreg\._reconstructor|datetime\.\w+|decimal\.Decimal|enum\.\w+"
    r"|fractions\.Fraction|functools\.partial|pathlib(\._\w+)?\.\w*Path|types\.SimpleNamespace|typing\.\w+|uuid\.UUID"
    r"|builtins\.(bool|bytearray|bytes|complex|dict|float|frozenset|int|list|object|range|set|slice|str|tuple)"
    r"|torch\.(optim|utils\.data|cuda\.amp|amp)\..+)"
)
# Modules of the standard library, also by their Python 2 names, which torch.save uses
LIBRARY = sys.stdlib_module_names | {*IMPORT_MAPPING, *(module for module, _ in NAME_MAPPING)}
NUMPY = re.compile(r"numpy(\.\w+)*\.(scalar|dtype|ndarray|_reconstruct|_frombuffer|__\w+_ctor|[A-Z]\w*)")
CLASS = re.compile(r"(.+\.)?_*[A-Z]\w*")  # PEP 8: functions do not begin with a capital
MOST = 200  # classes in a checkpoint; real ones have a handful
REFUSED = re.compile(r"GLOBAL (\S+)")
FILLED = re.compile(r"Can only (SETITEMS?|append).* got <class '(.+)'>")


class Inert:
    """An object that accepts any arguments and any state.

    Attributes:
        state: set by the pickle, such as the averages of a trainer's helper; None if it sets none.
    """

    state: object = None

    def __new__(cls, *_args: object) -> "Inert":
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        self.state = state


class _InertDict:
    """Replaces a subclass of dict, which torch would refuse to fill."""

    def __new__(cls, *_args: object) -> OrderedDict:  # type: ignore[misc]  # the pickle must get a plain dict
        return OrderedDict()


class _InertList:
    """Replaces a subclass of list, which torch would refuse to fill."""

    def __new__(cls, *_args: object) -> list:  # type: ignore[misc]  # the pickle must get a plain list
        return []


class StandIns:
    """Replacements for the classes of a pickle, collected from the errors of `torch.load`."""

    def __init__(self) -> None:
        self._bases: dict[str, type] = {}

    @property
    def classes(self) -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
        """Arguments for `torch.serialization.safe_globals`."""
        return [(_named(name, base), name) for name, base in self._bases.items()]

    def learn(self, error: BaseException) -> bool:
        """Add the class that `torch.load` refused in `error`; return False if it refused something else or unsafe."""
        filled = FILLED.search(str(error))
        name = filled[2] if filled else refused_name(error)
        before = Inert if filled else None
        if len(self._bases) == MOST:  # each costs another attempt to read
            return False
        if name is None or self._bases.get(name) is not before or not may_be_named(name):
            return False
        self._bases[name] = (_InertList if filled[1] == "append" else _InertDict) if filled else Inert
        return True


def may_be_named(name: str) -> bool:
    """Return whether a dotted name is that of a class that checkpoints may contain.

    Accepted are the data types of the standard library, torch and numpy, and capitalised names of other packages.
    Modules of torch are not, because they would hide weights.
    """
    root = name.partition(".")[0]
    if root == "numpy":
        return bool(NUMPY.fullmatch(name))
    if root == "torch" or root in LIBRARY:
        return bool(STANDARD.fullmatch(name))
    return bool(CLASS.fullmatch(name))


def refused_name(error: BaseException) -> str | None:
    """Return the dotted name that `torch.load` refused; None if it refused something else."""
    found = REFUSED.search(str(error))
    if not found:
        return None
    return found[1] if "." in found[1] else f"builtins.{found[1]}"  # torch leaves that module out


def _named(name: str, base: type) -> type:
    module, _, cls = name.rpartition(".")
    return type(cls, (base,), {"__module__": module, "__qualname__": cls})
