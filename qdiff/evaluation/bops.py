"""Multiply-accumulates (MACs) and bit operations (BOPs) of a network, counted without computing it.

A MAC of operands with a and b bits is a * b BOPs (Bayesian Bits, van Baalen et al. 2020, arXiv 2005.07093): the bits of
weight and input in a layer, of both operands in an attention product, and 32 for each in floating point. MACs are those
of convolutions and products of matrices and vectors as `torch.utils.flop_counter` counts them, zeros of the padding
included. Biases, normalisation, activation functions and the softmax are not counted.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from qdiff.adapters import Adapter
from qdiff.calls import Call
from qdiff.policy import QuantPolicy, QuantSpec
from qdiff.quant_block import QuantProduct
from qdiff.quant_layer import QuantModule, fit_quantizer
from qdiff.quant_model import QuantModel


def _vector_flop(first: Sequence[int], second: Sequence[int], **other: Any) -> int:
    """Return the operations of a product of the shapes (N, C) and (C,), or (C,) and (C,): two for each MAC."""
    return 2 * prod(first)


VECTORS = dict.fromkeys((torch.ops.aten.mv, torch.ops.aten.dot), _vector_flop)  # which the counter does not know
FLOAT = 32  # bits of what stays in floating point

Bits = tuple[int, ...]  # of the two operands of a MAC


@dataclass(frozen=True)
class LeafBops:
    """Cost of a layer or attention product in one network call.

    Attributes:
        macs: multiply-accumulates for one sample.
        bits: of weight and input, or of both operands, in each phase of the policy.
    """

    macs: int
    bits: tuple[Bits, ...]

    def bops(self, phase: int = 0) -> int:
        """Return the bit operations for one sample in a phase, by its number."""
        return self.macs * prod(self.bits[phase])


@dataclass(frozen=True)
class NetworkBops:
    """Cost of one network call for one sample.

    Attributes:
        leaves: quantized layers and attention products by path, in definition order.
        macs: multiply-accumulates of the whole network.
        phases: numbers of the phases of its policy.
    """

    leaves: Mapping[str, LeafBops]
    macs: int
    phases: range = range(1)

    @property
    def other_macs(self) -> int:
        """Multiply-accumulates outside the leaves, in floating point."""
        return self.macs - sum(leaf.macs for leaf in self.leaves.values())

    @property
    def other_bops(self) -> int:
        """Bit operations outside the leaves."""
        return self.other_macs * FLOAT**2

    @property
    def fp_bops(self) -> int:
        """Bit operations of the network in full precision."""
        return self.macs * FLOAT**2

    def bops(self, phase: int = 0) -> int:
        """Return the bit operations of the whole network in a phase, by its number."""
        return sum(leaf.bops(phase) for leaf in self.leaves.values()) + self.other_bops


@dataclass(frozen=True)
class TrajectoryBops:
    """Cost of one image, from noise to the sampler's result.

    Attributes:
        call: cost of the network for one sample.
        phases: number of the policy's phase at each step of the sampler.
        rows: samples in the network's batch per image, 2 with guidance.
    """

    call: NetworkBops
    phases: tuple[int, ...]
    rows: int = 1

    @property
    def steps(self) -> list[int]:
        """Bit operations of each step."""
        return [self.rows * self.call.bops(phase) for phase in self.phases]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all steps."""
        return len(self.phases) * self.rows * self.call.macs

    @property
    def bops(self) -> int:
        """Bit operations of all steps."""
        return sum(self.steps)

    @property
    def fp_bops(self) -> int:
        """Bit operations of all steps in full precision."""
        return self.macs * FLOAT**2


def network_bops(network: nn.Module, call: Call) -> NetworkBops:
    """Count one network call, on tensors that have shapes and no values.

    Args:
        network: a `QuantModel`, whose policy tells the bits, calibrated or not; or one in full precision. It must not
            look at values.
        call: its arguments for any number of samples, on any device; one sample is counted.
    """
    called = network.model if isinstance(network, QuantModel) else network  # without looking for the phase
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=VECTORS) as counter:
        call.to("meta").empty(1)(without_values(called))
    flops = counter.get_flop_counts()

    def macs(name: str) -> int:
        return sum(flops.get(name, {}).values()) // 2

    if not isinstance(network, QuantModel):
        return NetworkBops({}, macs("Global"))
    root = type(called).__name__  # of paths in the counter, which is `model` in a QuantModel
    leaves = {path: LeafBops(macs(root + path.removeprefix("model")), bits) for path, bits in _bits(network)}
    return NetworkBops(leaves, macs("Global"), network.policy.phases)


def without_values(network: nn.Module) -> nn.Module:
    """Copy a network to the meta device; the network itself may go on sampling in another thread."""
    empty: dict[int, Tensor] = {id(x): torch.empty_like(x, device="meta") for x in network.buffers()}
    empty |= {id(x): nn.Parameter(torch.empty_like(x, device="meta"), False) for x in network.parameters()}
    return copy.deepcopy(network, empty)


def _bits(model: QuantModel) -> Iterator[tuple[str, tuple[Bits, ...]]]:
    """Yield the path of each leaf and its bits, by phase, as `LeafBops` has them."""
    policy = model.policy
    for path, leaf in model.named_modules():
        if isinstance(leaf, QuantModule | QuantProduct):
            by_phase = (_operands(policy, path, leaf, phase) for phase in policy.phases)
            yield path, tuple(tuple(spec.bits if spec else FLOAT for spec in specs) for specs in by_phase)


def _operands(
    policy: QuantPolicy, path: str, leaf: QuantModule | QuantProduct, phase: int
) -> tuple[QuantSpec | None, ...]:
    """Return the specs of what a leaf multiplies."""
    if isinstance(leaf, QuantProduct):
        return tuple(leaf.kind.spec(policy, path, operand, phase) for operand in leaf.kind.operands)
    return policy.weight_for(path), policy.act_for(path, phase=phase)


def empty_model(network: nn.Module, policy: QuantPolicy, adapter: Adapter) -> QuantModel:
    """Quantize a network on the meta device, in place: the result has the bits of `policy` and no numbers.

    Raises:
        ValueError: as `QuantModel`.
    """

    def layer(path: str, module: nn.Module, split: tuple[int, ...] | None) -> QuantModule:
        assert isinstance(module.weight, Tensor)  # as every layer in OPERATIONS has
        spec = policy.weight_for(f"model.{path}")
        some = fit_quantizer(torch.ones(1, sum(split or (1,))), spec, split)
        return QuantModule(module, some.to("meta"), torch.empty_like(module.weight, dtype=torch.uint8))

    return QuantModel(network, policy, adapter, make_layer=layer)
