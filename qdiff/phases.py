"""Activations that are quantized by phase: each phase of a policy has its own quantizers, and one phase is active."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, TypeVar, cast

from torch import Tensor, nn

from qdiff.quant_layer import Quantizer, UniformAffineQuantizer

Part = TypeVar("Part", bound=nn.Module)


class PerPhase(nn.Module, Generic[Part]):
    """One module for each phase: quantizers or observers, split or not.

    Args:
        phases: modules that map the same tensors.

    Attributes:
        active: number of the phase whose module is used; see `set_phase`.
    """

    def __init__(self, phases: Sequence[Part]):
        super().__init__()
        self.phases = nn.ModuleList(phases)
        self.active = 0

    def __iter__(self) -> Iterator[Part]:
        return cast(Iterator[Part], iter(self.phases))  # torch does not tell what a ModuleList holds

    def forward(self, *x: Tensor) -> Tensor:
        """Map tensors by the module of the active phase; returns what it returns."""
        return self.phases[self.active](*x)


class PhaseQuantizer(PerPhase[Quantizer]):
    """A quantizer of an activation for each phase (PTQD, He et al. 2023, section 3.4)."""

    def quantizers(self) -> list[UniformAffineQuantizer]:
        """Return the quantizers with one range each: phase by phase, slice by slice."""
        return [q for phase in self for q in phase.quantizers()]


ActQuantizer = Quantizer | PhaseQuantizer


def per_phase(module: nn.Module) -> list[PerPhase]:
    """Return the parts of a module that depend on the phase."""
    return [part for part in module.modules() if isinstance(part, PerPhase)]


def set_phase(parts: Iterable[PerPhase], phase: int) -> None:
    """Make a phase, by its number, the active one."""
    for part in parts:
        if part.active != phase:  # most calls change nothing, and setting an attribute of a module is slow
            part.active = phase


def phase_names(prefix: str, phases: int) -> list[str]:
    """Return the prefixes of the state dict's keys for each phase of an activation; `prefix` alone if there is one."""
    return [f"{prefix}.phases.{i}" for i in range(phases)] if phases > 1 else [prefix]
