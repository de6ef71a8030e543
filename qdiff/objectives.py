"""What is learned of a block: the rounding of its weights, or the step sizes of its activations."""

import math
from collections.abc import Mapping
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from qdiff.adaptive_rounding import REGULARIZER_WEIGHT, AdaRoundQuantizer, beta_at
from qdiff.functional import LOSS_P
from qdiff.quant_block import QuantBlock
from qdiff.quant_layer import QuantModule, SplitQuantizer
from qdiff.ranges import MIN_DELTA

Rounding = AdaRoundQuantizer | SplitQuantizer


class Objective(Protocol):
    """Variables of a block and their loss. A scope: on exit the block is as before, unless `keep` was called."""

    p: float  # exponent of the reconstruction error

    def __enter__(self) -> "Objective": ...
    def __exit__(self, *exc: object) -> None: ...
    def parameters(self) -> list[nn.Parameter]: ...
    def rate(self, iteration: int, iterations: int) -> float: ...
    def penalty(self, iteration: int, iterations: int) -> Tensor | float: ...
    def after_step(self) -> None: ...
    def harden(self) -> None: ...
    def keep(self) -> None: ...
    def state(self) -> dict[str, Tensor]: ...
    def load(self, state: Mapping[str, Tensor]) -> None: ...


class LearnedRounding:
    """Rounding up or down of every weight of a block: squared error plus the AdaRound regulariser.

    Args:
        block: with its full-precision weights.
    """

    p = 2.0

    def __init__(self, block: QuantBlock):
        self.layers = block.layers
        self.roundings: dict[str, Rounding] = {}

    def __enter__(self) -> "LearnedRounding":
        for path, layer in self.layers.items():
            rounding = layer.weight_quantizer.per_slice(AdaRoundQuantizer, _weight(path, layer)).train()
            layer.rounding = self.roundings[path] = cast(Rounding, rounding)
        return self

    def __exit__(self, *exc: object) -> None:
        for layer in self.layers.values():
            layer.rounding = None
        self.roundings.clear()

    def _parts(self) -> list[AdaRoundQuantizer]:
        return [m for r in self.roundings.values() for m in r.modules() if isinstance(m, AdaRoundQuantizer)]

    def parameters(self) -> list[nn.Parameter]:
        """Return every alpha."""
        return [m.alpha for m in self._parts()]

    def rate(self, iteration: int, iterations: int) -> float:
        """Return 1: the learning rate is constant."""
        return 1.0

    def penalty(self, iteration: int, iterations: int) -> Tensor | float:
        """Return 0.01 * regulariser, a scalar, summed over layers *and* slices of split ones; 0 during warm-up."""
        beta = beta_at(iteration, iterations)
        return 0.0 if beta is None else REGULARIZER_WEIGHT * sum(m.regularizer(beta) for m in self._parts())

    def after_step(self) -> None:
        """Do nothing: alpha is unbounded."""

    def harden(self) -> None:
        """Replace soft roundings by hard ones."""
        for m in self._parts():
            m.eval()

    def keep(self) -> None:
        """Fold the learned roundings into the layers' codes."""
        for path, layer in self.layers.items():
            layer.set_codes(self.roundings[path].codes(_weight(path, layer)))

    def state(self) -> dict[str, Tensor]:
        """Return the block's present codes, uint8 in the shape of each weight, for the journal."""
        return {f"{path}.codes": layer.codes for path, layer in self.layers.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Set codes that `state` returned, see there."""
        for path, layer in self.layers.items():
            layer.set_codes(state[f"{path}.codes"])


class LearnedSteps:
    """Step sizes of a block's activations (LSQ, Esser et al. 2020), with a cosine decay of the learning rate to 0.

    Args:
        block: with calibrated activation quantizers.
        p: exponent of the error.
    """

    def __init__(self, block: QuantBlock, p: float = LOSS_P):
        self.p = p
        self.deltas = {
            f"{site.path}.{site.name}.{i}": quantizer.delta
            for site in block.sites
            for i, quantizer in enumerate(site.calibrated.quantizers())
            if quantizer.spec.step_is_learned
        }
        self.initial: list[Tensor] = []

    def __enter__(self) -> "LearnedSteps":
        self.initial = [delta.detach().clone() for delta in self.deltas.values()]
        for delta in self.deltas.values():
            delta.requires_grad_(True)
        return self

    def __exit__(self, *exc: object) -> None:
        for delta, start in zip(self.deltas.values(), self.initial):
            delta.requires_grad_(False).copy_(start)

    def parameters(self) -> list[nn.Parameter]:
        """Return every delta that is learned."""
        return list(self.deltas.values())

    def rate(self, iteration: int, iterations: int) -> float:
        """Return (1 + cos(pi i / n)) / 2."""
        return 0.5 * (1 + math.cos(math.pi * iteration / iterations))

    def penalty(self, iteration: int, iterations: int) -> Tensor | float:
        """Return the scalar 0: step sizes have no regulariser."""
        return 0.0

    def after_step(self) -> None:
        """Keep every step size positive, even if an update of Adam exceeds it."""
        with torch.no_grad():
            for delta in self.deltas.values():
                delta.clamp_(min=MIN_DELTA)

    def harden(self) -> None:
        """Do nothing: step sizes have no soft form."""

    def keep(self) -> None:
        """Make the end of the scope restore the learned step sizes."""
        self.initial = [delta.detach().clone() for delta in self.deltas.values()]

    def state(self) -> dict[str, Tensor]:
        """Return the block's present step sizes, float of shape (), for the journal."""
        return {name: delta.detach() for name, delta in self.deltas.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Set step sizes that `state` returned, of shape ()."""
        with torch.no_grad():
            for name, delta in self.deltas.items():
                delta.copy_(state[name])


def _weight(path: str, layer: QuantModule) -> Tensor:
    if layer.weight is None:
        raise ValueError(f"{path} holds integer weights only: its rounding cannot be learned")
    return layer.weight
