"""Inert classes in the place of those that a pickle names beside its tensors: nothing is imported or executed."""

import re
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict

# Of the standard library and of torch only these may be named: data, no functions that act
STANDARD = re.compile(
    r"(argparse\.Namespace|collections\.\w+|copyreg\._reconstructor|datetime\.\w+|decimal\.Decimal|enum\.\w+"
    r"|fractions\.Fraction|functools\.partial|pathlib(\._\w+)?\.\w*Path|types\.SimpleNamespace|typing\.\w+|uuid\.UUID"
    r"|builtins\.(bool|bytearray|bytes|complex|dict|float|frozenset|int|list|object|range|set|slice|str|tuple)"
    r"|torch\.(optim|utils\.data|cuda\.amp|amp)\..+)"
)
# Its modules, also by their names in Python 2, under which pickles of torch.save name them
LIBRARY = sys.stdlib_module_names | {*IMPORT_MAPPING, *(module for module, _ in NAME_MAPPING)}
NUMPY = re.compile(r"numpy(\.\w+)*\.(scalar|dtype|ndarray|_reconstruct|_frombuffer|__\w+_ctor|[A-Z]\w*)")
CLASS = re.compile(r"(.+\.)?_*[A-Z]\w*")  # PEP 8: a function does not begin like that
MOST = 200  # classes of a checkpoint; trainers leave a handful
REFUSED = re.compile(r"GLOBAL (\S+)")
FILLED = re.compile(r"Can only (SETITEMS?|append).* got <class '(.+)'>")


class Inert:
    """Takes any arguments and any state.

    Attributes:
        state: what the pickle gave it, such as the averages of a trainer's helper; None if nothing.
    """

    state: object = None

    def __new__(cls, *_args):
        return super().__new__(cls)

    def __setstate__(self, state):
        self.state = state


class _InertDict:
    """Stands in for a subclass of dict: torch fills nothing but dicts of its own types."""

    def __new__(cls, *_args):
        return OrderedDict()


class _InertList:
    """Stands in for a subclass of list."""

    def __new__(cls, *_args):
        return []


class StandIns:
    """The stand-ins that a pickle turns out to need, learned from what `torch.load` refuses.

    Attributes:
        classes: as `torch.serialization.safe_globals` takes them.
    """

    def __init__(self):
        self._bases: dict[str, type] = {}

    @property
    def classes(self) -> list[tuple[type, str]]:
        return [(_named(name, base), name) for name, base in self._bases.items()]

    def learn(self, error: Exception) -> bool:
        """Add the class that `torch.load` refused; False where it is none that may stand beside tensors."""
        filled = FILLED.search(str(error))
        name = filled[2] if filled else refused_name(error)
        before = Inert if filled else None
        if len(self._bases) == MOST:  # each one is a new try to read
            return False
        if name is None or self._bases.get(name) is not before or not may_be_named(name):
            return False
        self._bases[name] = (_InertList if filled[1] == "append" else _InertDict) if filled else Inert
        return True


def may_be_named(name: str) -> bool:
    """Whether a dotted name is that of a class that trainers leave in checkpoints.

    These are classes of other packages than the standard library and torch, told by their capital letter, and of these
    two the ones that hold data. Modules are left out, because they hold the weights.
    """
    root = name.partition(".")[0]
    if root == "numpy":
        return bool(NUMPY.fullmatch(name))
    if root == "torch" or root in LIBRARY:
        return bool(STANDARD.fullmatch(name))
    return bool(CLASS.fullmatch(name))


def refused_name(error: Exception) -> str | None:
    """The dotted name that `torch.load` refused; None where it refused something else."""
    found = REFUSED.search(str(error))
    if not found:
        return None
    return found[1] if "." in found[1] else f"builtins.{found[1]}"  # torch leaves that module out


def _named(name: str, base: type) -> type:
    module, _, cls = name.rpartition(".")
    return type(cls, (base,), {"__module__": module, "__qualname__": cls})
