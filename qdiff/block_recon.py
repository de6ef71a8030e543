"""Reconstruction of one block: learn roundings or step sizes so that the quantized block gives the FP block's output.

BRECQ (Li et al. 2021, arXiv 2102.05426), with the roundings of AdaRound and the activation steps of LSQ.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from qdiff.adaptive_rounding import REGULARIZER_WEIGHT, AdaRoundQuantizer, beta_at
from qdiff.calls import Call, Samples
from qdiff.errors import UserError
from qdiff.functional import LOSS_P, lp_loss
from qdiff.quant_block import QuantBlock
from qdiff.ranges import MIN_DELTA

CHECK_EVERY = 50  # iterations between two looks at the loss, which cost a synchronisation on a GPU


@dataclass(frozen=True)
class Captured:
    """What a block is reconstructed from.

    Args:
        inputs: its arguments for N samples, from the network quantized so far.
        target: its full-precision outputs for them.
    """

    inputs: Call
    target: Samples

    def __len__(self) -> int:
        return len(self.target)


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to learn: Adam for `iterations` steps at rate `lr`."""

    iterations: int
    lr: float


@dataclass(frozen=True)
class Outcome:
    """Mean loss of the block over the calibration set before and after, the better of which is what it has now."""

    before: float
    after: float

    @property
    def improved(self) -> bool:
        """Whether what was learned is kept."""
        return self.after < self.before


class Objective(Protocol):
    """What is learned of a block. Used as a scope: what it put into the block is gone afterwards, unless kept."""

    p: float

    def __enter__(self) -> "Objective": ...
    def __exit__(self, *exc) -> None: ...
    def parameters(self) -> list[nn.Parameter]: ...
    def rate(self, iteration: int, iterations: int) -> float: ...
    def penalty(self, iteration: int, iterations: int) -> Tensor | float: ...
    def after_step(self) -> None: ...
    def harden(self) -> None: ...
    def keep(self) -> None: ...
    def state(self) -> dict[str, Tensor]: ...
    def load(self, state: Mapping[str, Tensor]) -> None: ...


class LearnedRounding:
    """Rounding up or down of every weight of the block; squared error plus the AdaRound regulariser."""

    p = 2.0

    def __init__(self, block: QuantBlock):
        self.named = block.layers
        self.layers = list(block.layers.values())

    def __enter__(self) -> "LearnedRounding":
        for layer in self.layers:
            layer.rounding = layer.weight_quantizer.per_slice(AdaRoundQuantizer, layer.weight).train()
        return self

    def __exit__(self, *exc) -> None:
        for layer in self.layers:
            layer.rounding = None

    def _roundings(self) -> list[AdaRoundQuantizer]:
        return [m for layer in self.layers for m in layer.rounding.modules() if isinstance(m, AdaRoundQuantizer)]

    def parameters(self) -> list[nn.Parameter]:
        """Every alpha."""
        return [m.alpha for m in self._roundings()]

    def rate(self, iteration: int, iterations: int) -> float:
        """The learning rate is constant."""
        return 1.0

    def penalty(self, iteration: int, iterations: int) -> Tensor | float:
        """0.01 * regulariser, summed over layers *and* over the slices of split ones."""
        beta = beta_at(iteration, iterations)
        return 0.0 if beta is None else REGULARIZER_WEIGHT * sum(m.regularizer(beta) for m in self._roundings())

    def after_step(self) -> None:
        """alpha is unbounded."""

    def harden(self) -> None:
        """Decide every rounding."""
        for m in self._roundings():
            m.eval()

    def keep(self) -> None:
        """Fold the learned roundings into the layers' codes."""
        for layer in self.layers:
            layer.set_codes(layer.rounding.codes(layer.weight))

    def state(self) -> dict[str, Tensor]:
        """The block's codes as they are now, for the journal."""
        return {f"{path}.codes": layer.codes for path, layer in self.named.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Codes as `state` gave them."""
        for path, layer in self.named.items():
            layer.set_codes(state[f"{path}.codes"])


class LearnedSteps:
    """Step sizes of the block's activations (LSQ, Esser et al. 2020); error to the power 2.4, cosine decay to 0."""

    def __init__(self, block: QuantBlock, p: float = LOSS_P):
        self.p = p
        self.named = {
            f"{site.path}.{site.name}.{i}": q.delta
            for site in block.sites
            if site.spec.step_is_learned
            for i, q in enumerate(site.quantizer.quantizers())
        }
        self.deltas: list[nn.Parameter] = list(self.named.values())
        self.initial: list[Tensor] = []

    def __enter__(self) -> "LearnedSteps":
        self.initial = [delta.detach().clone() for delta in self.deltas]
        for delta in self.deltas:
            delta.requires_grad_(True)
        return self

    def __exit__(self, *exc) -> None:
        for delta, start in zip(self.deltas, self.initial):
            delta.requires_grad_(False).copy_(start)

    def parameters(self) -> list[nn.Parameter]:
        """Every delta that is learned."""
        return self.deltas

    def rate(self, iteration: int, iterations: int) -> float:
        """(1 + cos(pi i / n)) / 2."""
        return 0.5 * (1 + math.cos(math.pi * iteration / iterations))

    def penalty(self, iteration: int, iterations: int) -> Tensor | float:
        """None."""
        return 0.0

    def after_step(self) -> None:
        """A step size stays positive, also where one update of Adam is larger than the step."""
        with torch.no_grad():
            for delta in self.deltas:
                delta.clamp_(min=MIN_DELTA)

    def harden(self) -> None:
        """Steps have no soft form."""

    def keep(self) -> None:
        """Leaving the scope no longer restores the initial steps."""
        self.initial = [delta.detach().clone() for delta in self.deltas]

    def state(self) -> dict[str, Tensor]:
        """The block's step sizes as they are now, for the journal."""
        return {name: delta.detach() for name, delta in self.named.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Step sizes as `state` gave them."""
        with torch.no_grad():
            for name, delta in self.named.items():
                delta.copy_(state[name])


def output_loss(output: Any, target: Samples, p: float) -> Tensor:
    """Return the sum of `lp_loss` over the floating-point tensors of a block's output; scalar.

    Args:
        output: what the block returns, a tree like that of `target`.
        target: what it should return.
        p: exponent.

    Raises:
        ValueError: there is no such tensor.
    """
    pairs = zip(target.select(output), target.tensors)
    losses = [lp_loss(_channels(x), _channels(y), p) for x, y in pairs if y.is_floating_point()]
    if not losses:
        raise ValueError(f"a block without floating-point outputs cannot be reconstructed: {target}")
    return reduce(add, losses)


def _channels(x: Tensor) -> Tensor:
    return x if x.ndim > 1 else x[:, None]


def block_loss(block: nn.Module, captured: Captured, p: float, batch_size: int) -> float:
    """Return the mean over all captured samples of the loss that reconstruction minimises, without regulariser."""
    device = next(block.parameters()).device
    total = 0.0
    with torch.no_grad():
        for inputs, target in zip(captured.inputs.batches(batch_size), captured.target.batches(batch_size)):
            output = inputs.to(device, copy=True)(block)  # a copy, because a block may change its input in place
            total += output_loss(output, target.to(device), p).item() * len(target)
    return total / len(captured)


def block_reconstruction(
    block: QuantBlock,
    captured: Captured,
    objective: Objective,
    schedule: Schedule,
    batch_size: int,
    generator: torch.Generator,
    progress: Callable[[int], None] = lambda iterations: None,
) -> Outcome:
    """Learn, and keep what was learned where it is better over the whole calibration set than what was there before.

    Args:
        block: in evaluation mode throughout, so dropout is off.
        captured: its inputs and FP outputs.
        objective: `LearnedRounding` or `LearnedSteps`.
        schedule: iterations and learning rate.
        batch_size: samples per iteration.
        generator: CPU generator that draws the batches.
        progress: called with the number of iterations done since its last call.

    Raises:
        UserError: a loss is not finite.
    """
    module = block.module.eval()
    device = next(module.parameters()).device
    before = block_loss(module, captured, objective.p, batch_size)
    _require_finite(before, block.path, "before learning")
    with objective:
        adam = torch.optim.Adam(objective.parameters(), lr=schedule.lr)
        for i in range(schedule.iterations):
            chosen = torch.randint(len(captured), (batch_size,), generator=generator)
            output = captured.inputs[chosen].to(device)(module)
            error = output_loss(output, captured.target[chosen].to(device), objective.p)
            loss = error + objective.penalty(i, schedule.iterations)
            adam.zero_grad(set_to_none=True)
            loss.backward()
            adam.param_groups[0]["lr"] = schedule.lr * objective.rate(i, schedule.iterations)
            adam.step()
            objective.after_step()
            if (i + 1) % CHECK_EVERY == 0 or i + 1 == schedule.iterations:
                _require_finite(loss.item(), block.path, f"at iteration {i + 1}")
                progress((i % CHECK_EVERY) + 1)
        objective.harden()
        after = block_loss(module, captured, objective.p, batch_size)
        _require_finite(after, block.path, "after learning")
        outcome = Outcome(before, after)
        if outcome.improved:
            objective.keep()
    return outcome


def _require_finite(loss: float, path: str, when: str) -> None:
    if not math.isfinite(loss):
        raise UserError(
            f"reconstruction of {path}: the loss is {loss} {when}; check the weights and --cali_data_path for "
            "non-finite values, or lower --cali_lr_w (weights) or --cali_lr (step sizes)"
        )
