"""Reconstruct one block: learn roundings or step sizes so that the quantized block returns the FP block's output.

BRECQ (Li et al. 2021, arXiv 2102.05426), with the roundings of AdaRound and the activation steps of LSQ.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate, pairwise
from operator import add
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from qdiff.calls import Call, Samples
from qdiff.errors import UserError
from qdiff.functional import lp_loss
from qdiff.objectives import Objective
from qdiff.parallel import ALONE, Parallel
from qdiff.phases import per_phase, set_phase
from qdiff.quant_block import QuantBlock

CHECK_EVERY = 50  # iterations between two checks of the loss, each of which synchronises a GPU


TargetT = TypeVar("TargetT", bound=Samples)


@dataclass(frozen=True)
class Captured(Generic[TargetT]):
    """What a block is reconstructed from.

    Args:
        inputs: its arguments for N samples, from the network quantized so far.
        target: its full-precision outputs for them, or its arguments in full precision.
        phases: how many samples are in each phase of the policy, in order, which add up to N; () for samples that are
            quantized in the same way, whatever their timestep.
    """

    inputs: Call
    target: TargetT
    phases: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.target)

    @property
    def _rows(self) -> list[range]:
        """The samples of each phase."""
        ends = list(accumulate(self.phases or (len(self),), initial=0))
        return [range(start, end) for start, end in pairwise(ends)]

    def batches(self, size: int) -> Iterator[tuple[int, slice]]:
        """Yield phase and samples of batches that are in one phase each, `size` at a time or fewer, in order."""
        for phase, rows in enumerate(self._rows):
            for start in rows[::size]:
                yield phase, slice(start, min(start + size, rows.stop))

    def drawn(self, size: int, generator: torch.Generator) -> tuple[int, Tensor]:
        """Draw `size` samples of one phase, see `Samples`, with repetition; phases in proportion to their samples.

        Returns:
            the phase, and the numbers of the samples.
        """
        rows, phase = self._rows, 0
        if len(rows) > 1:
            sample = int(torch.randint(len(self), (), generator=generator))
            phase = next(i for i, of_phase in enumerate(rows) if sample in of_phase)
        return phase, rows[phase].start + torch.randint(len(rows[phase]), (size,), generator=generator)


@dataclass(frozen=True)
class Schedule:
    """Adam for `iterations` steps at learning rate `lr`."""

    iterations: int
    lr: float


@dataclass(frozen=True)
class Outcome:
    """Mean loss of a block over the calibration set before and after learning; the block keeps the better state."""

    before: float
    after: float

    @property
    def improved(self) -> bool:
        """Whether the block keeps what was learned."""
        return self.after < self.before


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


def block_loss(block: nn.Module, captured: Captured, p: float, batch_size: int, parallel: Parallel = ALONE) -> float:
    """Return the mean over all captured samples of the loss that reconstruction minimises, without regulariser."""
    device, phased = next(block.parameters()).device, per_phase(block)
    total = 0.0
    with torch.no_grad():
        for phase, rows in parallel.share(list(captured.batches(batch_size))):
            set_phase(phased, phase)
            inputs, target = captured.inputs[rows], captured.target[rows]
            output = inputs.to(device, copy=True)(block)  # a copy, because a block may change its input in place
            total += output_loss(output, target.to(device), p).item() * len(target)
    return parallel.total(total) / len(captured)


def block_reconstruction(
    block: QuantBlock,
    captured: Captured,
    objective: Objective,
    schedule: Schedule,
    batch_size: int,
    generator: torch.Generator,
    progress: Callable[[int], None] = lambda iterations: None,
    parallel: Parallel = ALONE,
) -> Outcome:
    """Learn, and keep the result if it has a lower loss over the whole calibration set than the state before.

    Args:
        block: is set to evaluation mode, so dropout is off.
        captured: its inputs and FP outputs. Every iteration is on samples of one phase.
        objective: `LearnedRounding` or `LearnedSteps`.
        schedule: iterations and learning rate.
        batch_size: samples per iteration.
        generator: CPU generator that draws the batches.
        progress: called with the number of iterations done since its last call.
        parallel: divides every batch among processes, which must divide `batch_size` evenly.

    Returns:
        Losses before and after.

    Raises:
        UserError: a loss is not finite.
    """
    module = block.module.eval()
    device, phased = next(module.parameters()).device, per_phase(module)
    before = block_loss(module, captured, objective.p, batch_size, parallel)
    _require_finite(before, block.path, "before learning")
    with objective:
        learned = objective.parameters()
        parallel.agree(learned)
        adam = torch.optim.Adam(learned, lr=schedule.lr, fused=True)
        for i in range(schedule.iterations):
            phase, chosen = captured.drawn(batch_size, generator)
            chosen = parallel.share(chosen)
            set_phase(phased, phase)
            output = captured.inputs[chosen].to(device)(module)
            error = output_loss(output, captured.target[chosen].to(device), objective.p)
            loss = error + objective.penalty(i, schedule.iterations)
            if loss.requires_grad:  # not in a phase of 16 bits, whose step sizes are not learned
                adam.zero_grad(set_to_none=True)
                loss.backward(inputs=learned)  # not of biases and norms, which require gradients too
                parallel.average([x.grad for x in learned if x.grad is not None])
                adam.param_groups[0]["lr"] = schedule.lr * objective.rate(i, schedule.iterations)
                adam.step()
                objective.after_step()
            if (i + 1) % CHECK_EVERY == 0 or i + 1 == schedule.iterations:
                _require_finite(parallel.total(loss.item()), block.path, f"at iteration {i + 1}")
                progress((i % CHECK_EVERY) + 1)
        objective.harden()
        after = block_loss(module, captured, objective.p, batch_size, parallel)
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
