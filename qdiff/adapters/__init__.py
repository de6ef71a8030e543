"""What quantization must know of a family of networks; the only importers of `ddim` and `ldm`."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from torch import nn

from qdiff.errors import UserError
from qdiff.policy import QuantPolicy, QuantSpec


def unchanged(spec: QuantSpec) -> QuantSpec:
    """Return the spec itself: attention weights that differ from other activations in their bits alone."""
    return spec


@dataclass(frozen=True)
class ProductKind:
    """How a parameter-free attention product is quantized.

    Args:
        operands: names of its two arguments, in order; quantizers, files and rules of a policy use them.
        softmax: the operand that is attention after its softmax, which gets `QuantPolicy.softmax_bits`; None without.
        softmax_spec: its whole spec, from the activations' spec with the softmax's bits.
        legacy_owner: whether the paper's checkpoints keep its quantizers on the module that holds it.
    """

    operands: tuple[str, str]
    softmax: str | None = None
    softmax_spec: Callable[[QuantSpec], QuantSpec] = unchanged
    legacy_owner: bool = False

    def spec(self, policy: QuantPolicy, path: str, operand: str) -> QuantSpec | None:
        """Return the spec of an operand of the product at `path`; None if it stays in floating point."""
        is_softmax = operand == self.softmax
        spec = policy.act_for(path, operand, softmax=is_softmax)
        return self.softmax_spec(spec) if spec and is_softmax else spec


@dataclass(frozen=True)
class Adapter:
    """One family of networks.

    Args:
        family: the package that the networks come from; files name it.
        build: a network of the family from its configuration.
        blocks: exact types of the modules that are reconstructed as one.
        products: the attention products, by exact type.
        plain: exact types of modules that own parameters and stay as they are (normalisation).
        splits: path of every shortcut layer that sees two concatenated tensors -> their channels, from below first.
        rehearsed: scope in which attention goes through its slices once for each item that a call gives.
    """

    family: str
    build: Callable[..., nn.Module]
    blocks: tuple[type, ...]
    products: Mapping[type, ProductKind]
    plain: tuple[type, ...]
    splits: Callable[[nn.Module], dict[str, tuple[int, int]]]
    rehearsed: Callable[[Callable[[], Iterable]], AbstractContextManager] = nullcontext


def shortcut_splits(model: nn.Module, block: type, shortcut: str) -> dict[str, tuple[int, int]]:
    """`Adapter.splits` of networks whose residual blocks, of type `block`, have `skip_channels` and that shortcut."""
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, block) and module.skip_channels:
            layer = f"{path}.{shortcut}"
            channels = model.get_submodule(layer).in_channels
            found[layer] = (channels - module.skip_channels, module.skip_channels)
    return found


# family -> the module whose ADAPTER describes it
FAMILIES = {"ddim": "qdiff.adapters.ddim.blocks", "ldm": "qdiff.adapters.ldm.blocks"}


def check_packages() -> None:
    """Raise UserError where Python finds another package under the name of a family than the one beside `qdiff`."""
    own = Path(__file__).resolve().parents[2]
    for family in FAMILIES:
        spec = find_spec(family)
        for found in map(Path, (spec and spec.submodule_search_locations) or ()):
            if found.resolve().parent != own:
                raise UserError(
                    f"'{found}' hides this program's own package '{family}': take '{found.parent}' out of PYTHONPATH, "
                    "or start in another folder"
                )


def adapter_of(family: str) -> Adapter:
    """The adapter of a family. Raises KeyError for one that is not known, UserError as `check_packages`."""
    try:
        return import_module(FAMILIES[family]).ADAPTER
    except ImportError:
        check_packages()
        raise


def adapter_for(model: nn.Module) -> Adapter:
    """The adapter of the family that `model` comes from. Raises ValueError for a network from elsewhere."""
    family = type(model).__module__.partition(".")[0]
    if family not in FAMILIES:
        raise ValueError(f"{type(model).__name__} is not a network of {', '.join(FAMILIES)}: pass an Adapter for it")
    return adapter_of(family)
