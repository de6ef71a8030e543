"""Descriptions of network families for quantization; the only importers of `ddim` and `ldm`."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from qdiff.errors import UserError
from qdiff.policy import QuantPolicy, QuantSpec


def from_zero(spec: QuantSpec) -> QuantSpec:
    """Return the spec with a range that begins at zero, for attention weights: zero is a code, which integers need."""
    return replace(spec, always_zero=True)


def unchanged(spec: QuantSpec) -> QuantSpec:
    """Return the spec as it is, for attention weights that differ from other activations only in their bits."""
    return spec


def no_splits(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return no layers, for networks that concatenate nothing in front of a layer."""
    return {}


TIMESTEP = ("t", "timestep", "timesteps")  # usual keywords


def second_argument(*args: Any, **kwargs: Any) -> Any:
    """Return a network's second positional argument or, called with fewer, its keyword t, timestep or timesteps.

    Raises:
        ValueError: it is called with neither.
    """
    found = [*args[1:2], *(kwargs[name] for name in TIMESTEP if name in kwargs)]
    if not found:
        raise ValueError(
            "the timestep is needed, but the network is called without a second argument and without "
            f"{', '.join(TIMESTEP)}: tell which argument it is with Adapter(timestep=...)"
        )
    return found[0]


def no_build(*config: object) -> nn.Module:
    """Raise ValueError: this adapter cannot build networks."""
    raise ValueError("this adapter cannot build networks: construct yours, or give the Adapter a function `build`")


@dataclass(frozen=True)
class Contraction:
    """What a product of two activations computes, for engines that compute it in integers.

    Args:
        equation: as of `torch.einsum`, with one index that is summed over and a batch index, "bci,bcj->bij".
        scaled: whether the result is divided by the square root of the number of terms in each sum.
    """

    equation: str
    scaled: bool = False

    @property
    def indices(self) -> tuple[str, str, str]:
        """The indices of both operands and of the result."""
        first, second, result = self.equation.replace("->", ",").split(",")
        return first, second, result

    @property
    def summed(self) -> str:
        """The index that is summed over."""
        first, second, result = self.indices
        (summed,) = set(first) & set(second) - set(result)
        return summed


@dataclass(frozen=True)
class ProductKind:
    """How a product of two activations is quantized; see `Adapter.products`.

    Args:
        operands: names of its two arguments, in order, for example ("q", "k"). They name quantizers in files and in
            the rules of a policy.
        softmax: the operand that holds attention weights (after the softmax), which get `QuantPolicy.softmax_bits`;
            None if neither does.
        softmax_spec: turns the spec of other activations, with the bits of the softmax, into that of this operand.
        legacy_owner: whether the paper's checkpoints keep its quantizers on the module that holds it.
        contraction: what it computes; None for what is no contraction, which exported networks compute in floating
            point.
    """

    operands: tuple[str, str]
    softmax: str | None = None
    softmax_spec: Callable[[QuantSpec], QuantSpec] = unchanged
    legacy_owner: bool = False
    contraction: Contraction | None = None

    def spec(self, policy: QuantPolicy, path: str, operand: str, phase: int = 0) -> QuantSpec | None:
        """Return the spec of an operand of the product at `path` in a phase; None if it stays in floating point."""
        is_softmax = operand == self.softmax
        spec = policy.act_for(path, operand, softmax=is_softmax, phase=phase)
        return self.softmax_spec(spec) if spec and is_softmax else spec


@dataclass(frozen=True)
class Adapter:
    """What quantization must know about a family of networks.

    Convolutions and linear layers are quantized wherever they are. A network of residual blocks with group
    normalisation needs no more than

        adapter = Adapter(family="mine", blocks=(ResBlock,), plain=(nn.GroupNorm,))
        model = QuantModel(network, policy, adapter)
        model = load_quantized(network, path, adapter=adapter)

    Types are compared exactly: a subclass may compute something else, so it must be listed itself.

    Args:
        family: its name, which files of its networks hold.
        build: makes a network from its configuration. Needed only to name networks by configuration files; the default
            raises ValueError.
        blocks: types of the modules that are reconstructed as one: residual, attention or transformer blocks. A layer
            outside every block is reconstructed by itself.
        products: modules without parameters whose forward takes two activations that are both quantized, as the query
            and key or the attention weights and values of attention, by type. A product that is not a module of its
            own stays in floating point.
        plain: types of modules that own parameters and stay as they are, as normalisation and embeddings. A module
            with parameters that is neither quantized nor listed here is an error.
        splits: for a network in full precision, the path of every layer whose input concatenates two tensors along
            dimension 1 -> their channels, in order. With `QuantPolicy.split` each of the two has its own quantizers.
        sensitive: patterns of layers worth more bits than the rest, as in the rules of a policy, by name: "ends" for
            the first and the last layer, "time" for those of the time embedding.
        timestep: takes the arguments of the network's forward and returns its timesteps, a number or a tensor with one
            or with one for each sample, as `lambda x, step, **others: step`. Asked only where a policy has phases. By
            default `second_argument`.
        repeat_slices: context in which attention that computes slice by slice repeats all its slices once for each item
            that its argument, a function, yields; see `qdiff.observers.TwoPass`. Not needed otherwise.
    """

    family: str
    build: Callable[..., nn.Module] = no_build
    blocks: tuple[type, ...] = ()
    products: Mapping[type, ProductKind] = field(default_factory=dict)
    plain: tuple[type, ...] = ()
    splits: Callable[[nn.Module], dict[str, tuple[int, int]]] = no_splits
    sensitive: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    timestep: Callable[..., Any] = second_argument
    repeat_slices: Callable[[Callable[[], Iterable]], AbstractContextManager] = nullcontext

    def with_8_bits(self, policy: QuantPolicy, names: Iterable[str]) -> QuantPolicy:
        """Return the policy with 8 bits, weights and activations, for some of the `sensitive` layers, by name."""
        rules = tuple((pattern, 8) for name in names for pattern in self.sensitive[name])
        acts = policy.act_rules + rules if policy.act else policy.act_rules
        return replace(policy, weight_rules=policy.weight_rules + rules, act_rules=acts)


def shortcut_splits(model: nn.Module, block: type[nn.Module], shortcut: str) -> dict[str, tuple[int, int]]:
    """Find the layers that `Adapter.splits` returns in networks with one type of residual block.

    Args:
        model: the network in full precision.
        block: the type; its attribute `skip_channels` tells how many of its input channels, the last ones, come from
            the skip connection (0 for none).
        shortcut: name of its shortcut layer.
    """
    found = {}
    for path, module in model.named_modules():
        skip: int = getattr(module, "skip_channels", 0) if isinstance(module, block) else 0
        if skip:
            channels = model.get_parameter(f"{path}.{shortcut}.weight").shape[1]
            found[f"{path}.{shortcut}"] = (channels - skip, skip)
    return found


# family -> the module whose ADAPTER describes it
FAMILIES = {"ddim": "qdiff.adapters.ddim.blocks", "ldm": "qdiff.adapters.ldm.blocks"}


def check_packages() -> None:
    """Check that Python finds the packages `ddim` and `ldm` that belong to this program.

    Raises:
        UserError: another package of that name comes first in PYTHONPATH.
    """
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
    """Return the adapter of a family in `FAMILIES`. Raises KeyError for another one, UserError as `check_packages`."""
    try:
        return import_module(FAMILIES[family]).ADAPTER
    except ImportError:
        check_packages()
        raise


def adapter_for(model: nn.Module) -> Adapter:
    """Return the adapter of the family whose package `model` comes from.

    Raises:
        ValueError: a network from elsewhere; the message says how to describe it.
    """
    family = type(model).__module__.partition(".")[0]
    if family not in FAMILIES:
        raise ValueError(
            f"{type(model).__name__} is not a network of {', '.join(FAMILIES)}: describe it and pass "
            "adapter=Adapter(family=..., blocks=..., plain=...), see qdiff.adapters.Adapter"
        )
    return adapter_of(family)
